"""What the Mosaic GPU kernels of the mLSTM share: what a call is specialised on, tiles and their
accumulators in the layout of WGMMA, and the grid of clusters.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.mlstm.pallas_gpu_ring import SWIZZLE

# one number per row or column of a tile
ROWS, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


class Options(NamedTuple):
    """What all kernels of a call share: the simulator's parameters or False, whether heads are
    narrow (pallas_gpu.py) and whether h is normalised, L, eps, 1/sqrt(K).
    """

    interpret: Any
    narrow: bool
    normalise: bool
    chunk: int
    eps: float
    scale: float

    @property
    def rows(self) -> int:
        """Tokens of a tile."""
        return min(self.chunk, 128)


def accumulate(options: Options, products: Any, start: Float[Array, "R C"]) -> Float[Array, "R C"]:
    """The sum after products(accumulator), begun with `start`.

    The simulator has no run_state (jax 0.11 to 0.12). There the products go into a fresh
    accumulator, which is added to `start`; on the device that would take the registers of two
    tiles.
    """
    if options.interpret is False:
        return pl.run_state(products)(plgpu.ACC.init(start))

    def from_zero(acc: Any) -> Array:
        products(acc)
        return acc[...]

    return start + pl.run_scoped(from_zero, plgpu.ACC(start.shape, jnp.float32))


def add_product(options: Options, acc: Any, x: Array, y: Any) -> None:
    """acc += x @ y: x in registers, y in shared memory.

    The simulator's WGMMA takes x from shared memory alone.
    """

    def by_way_of(tile: Any) -> None:
        tile[...] = x
        plgpu.commit_smem()
        plgpu.wgmma(acc, tile, y)

    if options.interpret is False:
        plgpu.wgmma(acc, x, y)
    else:
        pl.run_scoped(by_way_of, smem(x.shape, x.dtype))


def weighted(options: Options, pairs: Array, high: Array, low: Array, allowed: Array) -> Array:
    """pairs · exp(high + low) / sqrt(K) where allowed, else 0; all matrices."""
    return jnp.where(allowed, options.scale * jnp.exp(high + low) * pairs, 0.0)


def for_each_row(numbers: Any, shape: tuple[int, int]) -> Array:
    """A vector in shared memory as a matrix whose row n is full of its number n."""
    return along_rows(plgpu.load(numbers, layout=ROWS), shape)


def along_rows(numbers: Float[Array, " R"], shape: tuple[int, int]) -> Array:
    """A vector in registers (layout ROWS) as a matrix whose row n is full of its number n."""
    return lax.broadcast_in_dim(numbers, shape, [0])


def for_each_column(numbers: Any, shape: tuple[int, int]) -> Array:
    """A vector in shared memory as a matrix whose column n is full of its number n."""
    return lax.broadcast_in_dim(plgpu.load(numbers, layout=COLUMNS), shape, [1])


def tile_of(size: int) -> int:
    """The longer of 128 and 64 that divides a width."""
    return 128 if size % 128 == 0 else 64


def smem(shape: tuple[int, int], dtype: Any) -> Any:
    """Shared memory for a tile, laid out as the tensor cores read it."""
    return plgpu.SMEM(shape, dtype, transforms=SWIZZLE)


def blocks_of(tiles: int) -> int:
    """Blocks in a cluster: two, whose tiles are neighbours in the width of the output, where the
    tiles pair up.
    """
    return 1 if tiles % 2 else 2


def wide_tile(blocks: int) -> Array:
    """Which tile in the width of the output is this block's."""
    return lax.axis_index("wide") * blocks + lax.axis_index("block")


def batch_and_head(heads: int) -> tuple[Array, Array]:
    """Of this block."""
    at = lax.axis_index("bh")
    return at // heads, at % heads


def call(
    kernel: Any, options: Options, grid: dict[str, int], outs: Any, scratch: Any, blocks: int = 1
) -> Any:
    """A kernel as a function of its inputs; `grid` has the size of each axis by its name."""
    return plgpu.kernel(
        kernel,
        out_type=outs,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        cluster=(blocks,),
        cluster_names=("block",),
        interpret=options.interpret,
        kernel_name=kernel.__name__,
        # concerns exp alone: `pairs` has a quarter fewer instructions with it
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
