"""Tiles of tokens with all their channels, in the TPU's kernels whose arrays are [R I]: all tokens
of all rows of the batch, and channels.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool

from pallas_kernels.tpu_sizes import LANES

MOST_TOKENS = 512
ROOM = 48 * 2**20  # bytes of the VMEM limit that blocks may take; the compiler needs some, too


def tokens_of(arrays: int, channels: int, dtype: jnp.dtype, beside: int = 0) -> int:
    """Tokens of a tile: so many that VMEM holds two tiles of each of the arrays, one of which is
    copied while the other is computed, and `beside` bytes.

    Raises NotImplementedError where these are less than 128.
    """
    most = (ROOM - beside) // (2 * arrays * channels * jnp.dtype(dtype).itemsize)
    if most < LANES:
        raise NotImplementedError(
            f"VMEM must hold {LANES} tokens of all channels; {channels} channels are too many"
        )
    return min(MOST_TOKENS, 1 << (most.bit_length() - 1))


def split_tiles(tiles: int) -> tuple[int, int]:
    """The grid of a kernel that sums over tokens, one tile after the other: (parts, tiles of a
    part). A chip of two cores takes two parts at once.
    """
    parts = 2 if tiles % 2 == 0 else 1
    return parts, tiles // parts


def which_exist(rows: int, tokens: int, start: Any, count: int) -> Bool[Array, "t 1"] | None:
    """Which of `count` rows from `start` on exist; None, all, where the rows are whole tiles of so
    many tokens.
    """
    if rows % tokens == 0:
        return None
    return start + lax.broadcasted_iota(jnp.int32, (count, 1), 0) < rows


def existing(x: Array, some: Bool[Array, "t 1"] | None) -> Array:
    """x with zeros for the tokens that do not exist, whose memory holds anything."""
    return x if some is None else jnp.where(some, x, jnp.zeros_like(x))


def tile_block(tokens: int, channels: int, steps: int | None = None) -> pl.BlockSpec:
    """The tile of a program; of the grid (parts, steps) where steps are given."""
    if steps is None:
        return pl.BlockSpec((tokens, channels), lambda i: (i, 0))
    return pl.BlockSpec((tokens, channels), lambda part, step: (part * steps + step, 0))


def with_first_axis_last(x: Array) -> Array:
    """x, in memory with its first axis last.

    TPUs fill up an array's last axis to 128: the gradients of 4 x 4 blocks and of 8 gates would be
    added up, over devices and for all blocks of a model, in arrays of 16 or 32 times their size
    (0.4 of 2.3 GB of temporaries with 24 blocks of 4,096 channels).
    """
    last = jnp.moveaxis(x, 0, -1)
    last = with_layout_constraint(last, Layout(tuple(range(x.ndim))))
    return jnp.moveaxis(last, -1, 0)


def cost(flops: int, ins: Sequence[Any], outs: Sequence[Any]) -> pl.CostEstimate:
    """What the compiler is told of a kernel that reads and writes each array once."""
    moved = sum(x.size * jnp.dtype(x.dtype).itemsize for x in (*ins, *outs))
    return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved)


def products(interpret: Any) -> Any:
    """dot(x, y, contract) of two matrices with float32 sums; contract names the axis of each that
    is summed over.

    The matrix unit multiplies bfloat16; six passes of it make a float32 product. XLA on a CPU has
    no product of bfloat16 with sums in float32 for every layout: interpreted, the same numbers are
    multiplied as float32, in which their products are exact.
    """

    def dot(x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
        if interpret:
            x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        dims = (((contract[0],), (contract[1],)), ((), ()))
        precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)

    return dot
