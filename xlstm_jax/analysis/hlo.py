"""What a compiled program does, read from its HLO text: bytes of collectives and calls of kernels,
loops counted with their trips.
"""

import collections
import re

from xlstm_jax.analysis.compiled.kernels import KERNELS
from xlstm_jax.analysis.compiled.program import Instruction, item_bytes, read_program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Of these backends of `KERNELS` a compiled program only holds the calls: the GPU that loads it
# makes the kernels and says how much memory they need besides.
MADE_WHEN_LOADED = frozenset({"cudnn"})

_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of all collectives of one run on one device, by kind; those that do not
    occur are left out.

    The TPU compiler may run a collective while other work is done. It then appears as a chain of
    instructions, each with the whole result, some of them inside the loops of that other work. A
    chain counts once, as often as the instruction of it that runs least often.
    """
    total: dict[str, int] = collections.defaultdict(int)
    chains: dict[tuple[str, ...], int] = {}
    for times, instruction in read_program(text).instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        moved = times * _result_bytes(instruction, kind)
        if match := _CHAIN.search(instruction.text):
            chain = (kind, *match.groups())
            chains[chain] = min(moved, chains.get(chain, moved))
        else:
            total[kind] += moved
    for (kind, *_), moved in chains.items():
        total[kind] += moved
    return dict(total)


def kernel_calls(text: str) -> dict[str, int]:
    """How often one run calls the kernels of each backend that has some."""
    total: dict[str, int] = collections.defaultdict(int)
    for times, instruction in read_program(text).instructions():
        if instruction.target in KERNELS:
            total[KERNELS[instruction.target]] += times
    return dict(total)


def _result_bytes(collective: Instruction, kind: str) -> int:
    """Bytes of its result, wherever it is kept. That of a collective which is started and finished
    apart holds its operands first: the second half counts.
    """
    sizes = [
        array.size * item_bytes(array.dtype)
        for array in collective.arrays
        if (array.dtype, array.shape) != ("u32", ())
    ]
    started = collective.opcode.endswith("-start") and kind != "all-reduce"
    return sum(sizes[len(sizes) // 2 :] if started else sizes)
