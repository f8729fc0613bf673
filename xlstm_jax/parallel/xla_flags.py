"""Flags of XLA's and of its client that a process with an NVIDIA GPU runs with, each with its
reason.

They are read when the first device is used; commands set them before. What the environment already
has stays: XLA_FLAGS=--xla_disable_hlo_passes= turns that one off. Without a GPU nothing is set. One
for CPUs is in pallas_kernels/cpu_compiler.py.
"""

import os
import pathlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

DRIVER = pathlib.Path("/proc/driver/nvidia/version")


class Flag(NamedTuple):
    """One of XLA_FLAGS where `name` begins with "--", else a variable of the environment.

    Attributes:
        instead: older names of the variable; where one is set, that counts.
    """

    name: str
    value: str
    reason: str
    instead: tuple[str, ...] = ()


TRAINING = (
    Flag(
        "XLA_CLIENT_MEM_FRACTION",
        "0.93",
        "XLA takes 75 % of the memory by default, 64 of an H100's 85.5 GB, so that a step which "
        "fits by --aot may die; the rest is for CUDA, cuBLAS and NCCL",
        instead=("XLA_PYTHON_CLIENT_MEM_FRACTION",),
    ),
    Flag(
        "--xla_gpu_enable_triton_gemm",
        "false",
        "all products are cuBLAS's. For Triton's XLA compiles and times many sizes of tiles, of "
        "every product in every shape: with them 1.3B's blocks took 109 s to compile on an H200 "
        "(not measured without). Modelled, the steps of 125M and 1.42B are as fast without, and "
        "the step that was measured on an H100 (125M, 261,500 tokens/s) is without",
    ),
    Flag(
        "--xla_gpu_autotune_level",
        "0",
        "cuBLAS's first algorithm for every product and XLA's first form of every fused kernel, "
        "which are those of the measured step: it was compiled where there was no GPU to time "
        "them. A third less to compile (125M [7:1], without a GPU; on one all would be timed as "
        "well), and a run that is started again has the same algorithms as before",
    ),
)
WRITING = (
    Flag(
        "--xla_disable_hlo_passes",
        "dot-strength-reduction",
        "that pass makes of a row times a matrix a product of every entry, which is written and "
        "read again, in bfloat16: decoding the 7B model on an H100 moves 16.2 GB a token instead "
        "of 14.1, modelled 7.36 ms instead of 6.63. Not for training, where it serves the sums "
        "over tokens (125M: 376 instead of 395 ms a step)",
    ),
    Flag(
        "--xla_gpu_dot_merger_threshold_mb",
        "256",
        "products of one input, each with a kernel of up to so many MB, become one, which reads "
        "the kernels where they lie: q, k, v and the output gate of the 7B model (default: 32 MB, "
        "too few for the latter). A token has so many kernels less to launch",
    ),
)


def set_for_gpus(
    flags: Sequence[Flag], environment: MutableMapping[str, str] | None = None
) -> None:
    """Adds flags to the environment, where this process may use an NVIDIA GPU."""
    environment = os.environ if environment is None else environment
    platforms = set(environment.get("JAX_PLATFORMS", "").split(","))
    if not DRIVER.exists() or not {"", "cuda", "gpu"} & platforms:
        return
    given = environment.get("XLA_FLAGS", "").split()
    known = {flag.partition("=")[0] for flag in given}
    for flag in flags:
        if flag.name.startswith("--"):
            given += [] if flag.name in known else [f"{flag.name}={flag.value}"]
        elif not any(name in environment for name in flag.instead):
            environment.setdefault(flag.name, flag.value)
    if given:
        environment["XLA_FLAGS"] = " ".join(given)


def compiler_options(
    flags: Sequence[Flag], environment: Mapping[str, str] = os.environ
) -> dict[str, str | bool]:
    """Those of XLA_FLAGS that the environment does not have, as `jax.stages.Lowered.compile` takes
    them.
    """
    given = {flag.partition("=")[0] for flag in environment.get("XLA_FLAGS", "").split()}
    return {
        flag.name.removeprefix("--"): {"true": True, "false": False}.get(flag.value, flag.value)
        for flag in flags
        if flag.name.startswith("--") and flag.name not in given
    }
