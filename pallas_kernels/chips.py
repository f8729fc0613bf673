"""What chips can do at most, from the manufacturers' data sheets: the one table of the project."""

from typing import NamedTuple


class Chip(NamedTuple):
    """flops: dense bfloat16 FLOP/s (GPUs without sparsity); bandwidth: bytes/s of its memory, None
    where nobody has needed it; memory: bytes, of which a program may use a little less.
    """

    name: str  # as topologies name it, "v5p:4x4x4"
    flops: float
    bandwidth: float | None
    memory: float


# By the beginning of jax's device kind; the longest beginning wins.
CHIPS = {
    "NVIDIA A100": Chip("a100", 312e12, 2.04e12, 80e9),
    "NVIDIA H100 PCIe": Chip("h100pcie", 756e12, 2.0e12, 80e9),
    "NVIDIA H100": Chip("h100", 989e12, 3.35e12, 80e9),
    "NVIDIA H200": Chip("h200", 989e12, 4.8e12, 141e9),
    "TPU v4": Chip("v4", 275e12, None, 32 * 2**30),
    "TPU v5 lite": Chip("v5e", 197e12, 0.819e12, 16 * 2**30),
    "TPU v5e": Chip("v5e", 197e12, 0.819e12, 16 * 2**30),
    "TPU v5p": Chip("v5p", 459e12, 2.765e12, 95 * 2**30),
    "TPU v5": Chip("v5p", 459e12, 2.765e12, 95 * 2**30),  # v5p names itself so
    "TPU v6 lite": Chip("v6e", 918e12, 1.64e12, 32 * 2**30),
    "TPU v6e": Chip("v6e", 918e12, 1.64e12, 32 * 2**30),
}
UNKNOWN_TPUS = ("TPU v4 lite", "TPU v4i")  # inference chips that share a beginning with a known one


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device; None for one that is not in the table, a CPU for example."""
    known = [name for name in CHIPS if device_kind.startswith(name)]
    if not known or device_kind.startswith(UNKNOWN_TPUS):
        return None
    return CHIPS[max(known, key=len)]
