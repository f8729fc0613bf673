"""Keeps XLA from compiling wrong programs for the CPU."""

import os

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_fusions() -> None:
    """Leaves single products to XLA's YNN library, but no products fused with what is around them.

    jaxlib 0.10.2 to 0.12.0 fuse a batched product with elementwise neighbours and broadcasts into
    one YNN call that reads memory nobody wrote: the chunkwise mLSTM with a single chunk gave values
    off by anything from 2 % to 1e30 (tests/kernels/test_cpu_compiler.py). Speed is the same
    without. XLA reads its flags when the first device is used, so this is done on import; a flag
    that the user has set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT".strip()
