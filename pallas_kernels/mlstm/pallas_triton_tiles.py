"""What the Triton kernels of the mLSTM share: sizes, blocks of memory, products, and the weights
D_ts of a chunk's pairs of tokens.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers

# of Triton's software pipeline: loads of one step run beside the products of the one before
PIPELINE_STAGES = 2


class Blocks(NamedTuple):
    """Sizes of the kernels: tokens per chunk, and the longest tiles, each a power of two. A tile is
    halved until it divides its axis.
    """

    chunk: int
    tall: int  # rows of C (K) per program of the walk
    wide: int  # columns (V) per program of the walk, outputs and values
    keys: int  # columns of dq and dk (K) per program
    deep: int  # of the axis that is summed over, per step
    warps: int


class Options(NamedTuple):
    """What a call is specialised on; interpret as pl.pallas_call takes it, scale 1/sqrt(K)."""

    interpret: bool
    normalise: bool
    eps: float
    scale: float
    blocks: Blocks


def tile(size: int, longest: int) -> int:
    """The longest power of two up to `longest` that divides a filled up size."""
    return longest if size % longest == 0 else tile(size, longest // 2)


def width(size: int) -> int:
    """Triton's arrays have sizes that are powers of two: 16, 32, or any number of tiles of 64."""
    return max(16, pl.next_power_of_2(size)) if size < 64 else -(-size // 64) * 64


def call(
    kernel: Any,
    options: Any,
    grid: tuple[int, ...],
    ins: Any,
    outs: Any,
    *,
    in_place: Mapping[int, int] = MappingProxyType({}),
    stages: int | None = None,
) -> tuple[Array, ...]:
    """One kernel: ins are pairs of (array, block), outs triples of (shape, dtype, block). options
    are an op's own, with `interpret` and `blocks.warps`; in_place says which of ins has the memory
    of which of outs; stages of the pipeline, by default PIPELINE_STAGES.
    """
    # imported here, because only this backend needs it; jaxlib without a GPU has it too
    from jax.experimental.pallas import triton

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block for _, block in ins],
        out_specs=[block for _, _, block in outs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outs],
        interpret=options.interpret,
        input_output_aliases=dict(in_place),
        name=kernel.__name__,
        compiler_params=triton.CompilerParams(
            num_warps=options.blocks.warps, num_stages=stages or PIPELINE_STAGES
        ),
    )(*[x for x, _ in ins])


def dot(
    x: Array, y: Array, contract: tuple[int, int] = (1, 0), *, tensor_cores: bool = True
) -> Array:
    """A product of two matrices with float32 sums; contract names the axis of each that is summed
    over.

    On tensor cores two float32 matrices are multiplied as three TF32 products of their upper and
    lower halves, off by about 2^-21; on a CPU as float32.
    """
    split = x.dtype == jnp.float32 and tensor_cores
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if split else lax.Precision.HIGHEST
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def decays(row: Any, col: Any, row_low: Any, col_low: Any, document: Any) -> Float[Array, "L L"]:
    """D_ts of a chunk."""
    size = row.shape[0]
    t, s = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    document = document[:]
    pairs = (s <= t) & (document[:, None] == document[None, :])
    low = col_low[:][None, :]
    if row_low is not None:
        low = row_low[:][:, None] + low
    return jnp.exp(jnp.where(pairs, (row[:][:, None] + col[:][None, :]) + low, -jnp.inf))


def decay_arrays(gates: ChunkGates) -> tuple[TokenNumbers | None, ...]:
    """What `decays` takes."""
    return gates.row, gates.col, gates.row_low, gates.col_low


class ChunkBlocks:
    """Blocks of the kernels whose grid is (tiles, N, B·H): a chunk, whole or one tile of its last
    axis.
    """

    def __init__(self, heads: int, size: int) -> None:
        self.heads, self.size = heads, size

    def tokens(self, width: int, tiled: bool = False) -> pl.BlockSpec:
        """Of `B T H K`."""
        return pl.BlockSpec(
            (None, self.size, None, width),
            lambda j, n, g: (g // self.heads, n, g % self.heads, j if tiled else 0),
        )

    def numbers(self) -> pl.BlockSpec:
        """Of `B H T`."""
        return pl.BlockSpec(
            (None, None, self.size), lambda j, n, g: (g // self.heads, g % self.heads, n)
        )

    def document(self) -> pl.BlockSpec:
        """Of `B T`."""
        return pl.BlockSpec((None, self.size), lambda j, n, g: (g // self.heads, n))

    def chunk(self, *shape: int, tiled: int | None = None) -> pl.BlockSpec:
        """Of `B H N ...`; tiled is the axis of shape that the tiles run along."""

        def place(j, n, g):
            return (
                g // self.heads,
                g % self.heads,
                n,
                *(j if axis == tiled else 0 for axis in range(len(shape))),
            )

        return pl.BlockSpec((None, None, None, *shape), place)
