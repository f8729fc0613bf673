"""Which of XLA's Triton fusions work through head-wise tiles, which take the most registers."""

import re
from collections.abc import Sequence

from xlstm_jax.analysis.compiled.program import Array, Instruction


def strided_tiles(fusion: Instruction, body: Sequence[Instruction]) -> bool:
    """Whether a fusion reduces over heads, one head of several tokens at a time, with two or more
    arrays in hand.

    Such a tile, 32 x 384 or 64 x 256, is not contiguous in memory and is held in float32, once for
    each array, from the first reduction to the last. ptxas then gives a thread 227 to 255
    registers, one block of 256 threads fills a multiprocessor, and nothing hides the loads: 0.8 to
    1.06 TB/s were measured on an H100 (kernels 241, 316, 280, 347 and 672 of the two steps). Tiles
    of whole rows (8 x 2048, 16 x 768) and of parts of a head reached 1.95 to 2.2 TB/s.
    """
    sizes = fusion.attribute(r'"output_tiles":\[\{"sizes":\[([^\]]*)\]')
    reduced = [
        found
        for each in body
        if each.opcode == "reduce" and (found := _reduced(each, body)) is not None
    ]
    heads = [array for array in reduced if len(array.shape) >= 4 and array.shape[-2] > 1]
    if sizes is None or not heads:
        return False
    whole = max(heads, key=lambda array: array.size)
    large = [
        each for each in body if each.opcode == "parameter" and each.arrays[0].size >= whole.size
    ]
    if len(large) < 2:
        return False
    result = next(each for each in body if each.is_root).arrays[0]
    if result.size < whole.size:
        return True  # the reduction's own result, whose tile holds heads as a whole
    tile = [int(size) for size in re.findall(r"\d+", sizes)]
    if not tile:
        return False
    channels = tile[-1] * (tile[-2] if result.shape[-1] == whole.shape[-1] else 1)
    return channels == whole.shape[-1]


def _reduced(reduction: Instruction, body: Sequence[Instruction]) -> Array | None:
    """What a reduction over the last axis reduces; None for any other."""
    source = next((each for each in body if each.name == reduction.operands[0]), None)
    axes = reduction.attribute(r"dimensions=\{([\d,]*)\}")
    if source is None or axes is None:
        return None
    array = source.arrays[0]
    return array if axes == str(len(array.shape) - 1) else None
