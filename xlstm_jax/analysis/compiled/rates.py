"""How long a kernel should take: what kinds of kernels reach of a chip's data sheet.

The shares were fitted to two training steps that were measured on an H100 (600 and 1,480 ms;
2026-11-26, jax 0.11.2), the seconds of a recurrence to two forward passes, and nothing to the rest
(`benchmarks/modelled_steps.py` has it). For other chips they are assumed. What the links between
chips need is not in the model: a collective counts with the bytes that it moves in main memory.
"""

import math
import re
from typing import NamedTuple

from pallas_kernels.chips import Chip
from xlstm_jax.analysis.compiled.kernels import Kernel
from xlstm_jax.analysis.compiled.work import Product

# Shares of the data sheet's bytes/s (an H100: 3.35 TB/s).
LOOP = 0.91  # elementwise: 3.05 TB/s
PALLAS = 0.865  # our kernels, and products: 2.9 TB/s
TRITON = 0.64  # norms in whole rows: 2.15 TB/s
REDUCTION = 0.66  # sums over tokens: 2.2 TB/s
STRIDED = 0.30  # `tiles.strided_tiles`: 1.0 TB/s
INTERLEAVED = 0.173  # batched products that find 8 bytes side by side: 0.58 TB/s
OTHER = 0.84  # copies and what is left: 2.8 TB/s

# Shares of the data sheet's dense bfloat16 FLOP/s (an H100: 989 TFLOP/s).
PRODUCT = 0.785  # cuBLAS: 776 TFLOP/s where the tiles fill the multiprocessors
EPILOGUE = 0.60  # an exponential or a tanh at its end: Triton instead, 596 TFLOP/s
# cuBLAS needs rows of 16 bytes. Where they are not: Triton,
UNALIGNED_COLUMNS = 0.45  # 422 and 463 TFLOP/s
UNALIGNED_SPLIT = 0.34  # summed up in parts, as kernels' gradients: 288 and 387
UNALIGNED_SUMS = 0.205  # along the axis that is summed up: 197 and 208
TF32, FLOAT32 = 0.5, 0.06  # of all these, for float32 operands on the tensor cores and beside them
TILE = (128, 256)  # of cuBLAS's kernels
SPLITS = range(1, 9)  # in which it cuts the axis that is summed up, where there are few tiles

# A recurrence goes from token to token: seconds of one, from forward passes of 2,048 tokens at
# batch 16 that took 1.737 ms (heads of 64 units) and 3.123 ms (192, on several multiprocessors).
RECURRENT = re.compile(r"/slstm_(?:forward|backward)/")  # jax's names of Hopper kernels
TOKEN, SHARED_TOKEN, UNITS = 0.85e-6, 1.52e-6, 64

STEPS = 20e12  # lanes' steps a second (`work.STEPS`)
LAUNCH = 2.9e-6  # seconds that the least kernel takes
SECTOR = 32  # bytes that a GPU's memory gives at least

MULTIPROCESSORS = {"a100": 108, "h100": 132, "h200": 132}  # those that compute; others: no tiles


class Time(NamedTuple):
    """Seconds that a kernel should take, each time it is launched, and what sets them: "bytes",
    "FLOPs", "steps", "launch" or "recurrence".
    """

    seconds: float
    bound: str


def time_of(kernel: Kernel, chip: Chip) -> Time:
    """The longest of what its bytes, its FLOPs, its elementwise part and its launch take."""
    bandwidth = chip.bandwidth or math.inf
    times = {
        "launch": LAUNCH if chip.name in MULTIPROCESSORS else 0.0,
        "bytes": kernel.bytes / (memory_share(kernel) * bandwidth),
        "FLOPs": sum(
            product.flops / (product_share(product, chip, kernel.work.transcendental) * chip.flops)
            for product in kernel.work.products
        )
        or kernel.estimated_flops / (PRODUCT * chip.flops),
    }
    if kernel.is_pallas and RECURRENT.search(kernel.name) and chip.name in MULTIPROCESSORS:
        times["recurrence"] = recurrence(kernel)
    if not kernel.work.products and chip.name in MULTIPROCESSORS:
        times["steps"] = kernel.work.steps / (STEPS * chip.flops / 989e12)
    bound = max(times, key=times.__getitem__)
    return Time(times[bound], bound)


def recurrence(kernel: Kernel) -> float:
    """Seconds of a kernel that reads or writes [T, gates, H, V, B] and does one token at a time."""
    largest = max((*kernel.operands, *kernel.results), key=lambda array: array.size)
    return largest.shape[0] * (TOKEN if largest.shape[-2] <= UNITS else SHARED_TOKEN)


def memory_share(kernel: Kernel) -> float:
    """Share of the chip's bytes/s that a kernel reaches."""
    if kernel.work.products:
        narrow = min(product.run for product in kernel.work.products) < SECTOR
        return INTERLEAVED if narrow else PALLAS
    if kernel.strided:
        return STRIDED
    shares = {"loop": LOOP, "triton": TRITON, "input": REDUCTION}
    if kernel.emitter in shares:
        return shares[kernel.emitter]
    return PALLAS if kernel.is_pallas else OTHER


def product_share(product: Product, chip: Chip, transcendental: bool) -> float:
    """Share of the chip's FLOP/s that a product reaches."""
    share = PRODUCT * filled(product, MULTIPROCESSORS.get(chip.name))
    if chip.name in MULTIPROCESSORS:
        if transcendental:
            share = min(share, EPILOGUE)
        if product.contracted % 8:
            share = min(share, UNALIGNED_SUMS)
        elif product.rows % 8 or product.columns % 8:
            share = min(share, UNALIGNED_COLUMNS if product.batch == 1 else UNALIGNED_SPLIT)
    if product.dtype in ("f32", "f64"):
        share *= FLOAT32 if product.exact else TF32
    return share


def filled(product: Product, multiprocessors: int | None) -> float:
    """Share of the multiprocessors that compute on average: the last round of tiles leaves some
    without. 344 tiles on 132 of them take three rounds of which two and a half are used.
    """
    if multiprocessors is None:
        return 1.0
    tiles = product.batch * math.ceil(product.rows / TILE[0]) * math.ceil(product.columns / TILE[1])
    cuts = SPLITS if tiles < multiprocessors else (1,)
    return max(
        cut * tiles / multiprocessors / math.ceil(cut * tiles / multiprocessors) for cut in cuts
    )
