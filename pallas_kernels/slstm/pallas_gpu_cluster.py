"""What the two kernels of pallas_gpu.py share: R on chip, its products, and the exchange between
the blocks of a cluster.

A cluster serves one head and one tile of batch rows; each of its blocks has 64 units. Before a
step's product every block needs what all blocks made in the step before: h_{t-1} in the forward
pass, the gates' gradients in the backward pass. Both are outputs too, so they are exchanged through
their place in the output: TMA copies out, a barrier of the cluster, one TMA copy in, all of it in
the L2 cache.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

UNITS = 64  # units of a block: the rows of a WGMMA
MAX_BLOCKS = 8  # of a cluster, the portable limit
SHARED_MEMORY = 227 * 1024  # bytes that a block may have
MULTIPROCESSORS = 132  # of an H100 and an H200
# parts of R `[4·64, 64]` that shared memory holds: 192 of 227 KB, all of V = 384; more are held in
# registers
RESIDENT = 6


# Layout of this backend: W units (V filled up to a multiple of 64); batch and units are padded, and
# swapped where a block computes.
Tokens = Float[Array, "B T H W"]
States = Float[Array, "S H W B"]  # S = 4: c, n, h, m
Kept = Float[Array, "T 3 H W B"]  # c, n, m after each token
Flags = Int[Array, "T B"]


class Settings(NamedTuple):
    """What a call is compiled for: batch rows of a block, gradient clip, how to interpret."""

    rows: int
    clip: float | None
    interpret: Any


def resident_parts(interpret: Any, width: int) -> int:
    """Parts of R in shared memory: all of them in the simulator, which multiplies nothing that is
    in registers.
    """
    return min(width // UNITS, RESIDENT if interpret is False else MAX_BLOCKS)


def shared_bytes(rows: int, width: int, gates: int) -> int:
    """What a block asks for on the device: R, what is exchanged (as in `launch`), barriers."""
    return 2 * (4 * UNITS * UNITS * resident_parts(False, width) + gates * rows * width) + 64


def default_rows(batch: int, heads: int, dim: int) -> int:
    """Batch rows of a block: 8, or 16 where blocks of 8 would be more than the GPU has
    multiprocessors and 16 fit.

    A step's product streams R from shared memory however many rows there are, but its pointwise
    part takes time with them. From V = 384 on R leaves no shared memory (and at 512 no registers)
    for more than 8.
    """
    width = -(-dim // UNITS) * UNITS
    enough = heads * -(-batch // 8) * (width // UNITS) <= MULTIPROCESSORS
    fits = width <= UNITS * RESIDENT and shared_bytes(16, width, gates=4) <= SHARED_MEMORY
    return 8 if batch <= 8 or enough or not fits else 16


def launch(
    heads: int,
    tiles: int,
    width: int,
    dtype: Any,
    *,
    rows: int,
    gates: int,
    interpret: Any,
    approximate: bool,
) -> dict[str, Any]:
    """Arguments of `plgpu.kernel`: the grid of clusters and their shared memory.

    rows: batch rows of a tile; gates: how many arrays `[rows, W]` are exchanged in a step.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    blocks, resident = width // UNITS, resident_parts(interpret, width)
    tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    scratch = dict(
        R_smem=plgpu.SMEM((resident, 4, UNITS, UNITS), dtype, transforms=tiled),
        shared_smem=plgpu.SMEM((gates * rows, width), dtype, transforms=tiled),
        R_arrived=plgpu.Barrier(num_arrivals=4 * resident),
        arrived=plgpu.Barrier(),
    )
    cluster = {}
    if blocks > 1:
        scratch["exchanged"] = plgpu.ClusterBarrier(collective_axes=("block",))
        cluster = dict(cluster=(blocks,), cluster_names=("block",))
    return dict(
        grid=(heads, tiles),
        grid_names=("head", "tile"),
        **cluster,
        scratch_types=scratch,
        interpret=interpret,
        # Its own barriers around each load and store would be most of those in a step. Here only
        # `publish` writes what others read.
        compiler_params=plgpu.CompilerParams(
            approx_math=approximate,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
    )


class Place:
    """Which head, batch rows and units a block has."""

    def __init__(self, rows: int, blocks: int):
        self.shared = blocks > 1
        self.head, self.tile = lax.axis_index("head"), lax.axis_index("tile")
        self.batch = pl.ds(self.tile * rows, rows)
        self.units = (
            pl.ds(lax.axis_index("block") * UNITS, UNITS) if self.shared else pl.ds(0, UNITS)
        )


def load(ref: Any, reduced: int | None = None) -> Array:
    """From memory into the layout of a WGMMA's result `[64, B]`, or that of its rows (reduced=1) or
    columns (0).
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    layout = plgpu.Layout.WGMMA if reduced is None else plgpu.Layout.WGMMA.reduce(reduced)
    return plgpu.load(ref, layout=layout, optimized=False)


def store(ref: Any, x: Array) -> None:
    """x into memory (jax 0.11 has no plgpu.store; its assignment does the same)."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu, "store"):
        plgpu.store(ref, x, optimized=False)
    else:
        ref[...] = x


def load_R(R_ref: Any, R_smem: Any, arrived: Any, place: Place, blocks: int) -> list[list[Array]]:
    """Fills R_smem from R `[4 H W W]`, rows of this block's units, and returns the parts that it
    does not hold, in registers.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def part_of(part: int, gate: int) -> Any:
        return R_ref.at[gate, place.head, place.units, pl.ds(part * UNITS, UNITS)]

    resident = R_smem.shape[0]
    for part in range(resident):
        for gate in range(4):
            plgpu.copy_gmem_to_smem(part_of(part, gate), R_smem.at[part, gate], arrived)
    rest = [[load(part_of(part, gate)) for gate in range(4)] for part in range(resident, blocks)]
    plgpu.barrier_wait(arrived)
    return rest


def multiply(
    R_smem: Any, R_rest: list[list[Array]], shared_smem: Any, rows: int
) -> list[Float[Array, "64 B"]]:
    """R of each gate times what was exchanged: one array `[rows, W]` for all gates, or one each."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    resident, own = R_smem.shape[0], shared_smem.shape[0] > rows

    def operand(gate: int, part: Any) -> Any:
        return shared_smem.at[pl.ds(gate * rows if own else 0, rows), pl.ds(part * UNITS, UNITS)].T

    def total(*sums: Any) -> list[Array]:
        # unrolled, its many descriptors would not leave registers for anything else
        @pl.loop(0, resident)
        def _(part: Array) -> None:
            for gate in range(4):
                plgpu.wgmma(sums[gate], R_smem.at[part, gate], operand(gate, part))

        for part, gates in enumerate(R_rest, start=resident):
            # else the operands' addresses stay in 64 registers for the whole sequence
            part = lax.optimization_barrier(jnp.int32(part))
            for gate in range(4):
                plgpu.wgmma(sums[gate], gates[gate], operand(gate, part))
        return [x[...] for x in sums]

    return pl.run_scoped(total, *[plgpu.ACC((UNITS, rows), jnp.float32)] * 4)


def publish(
    values: list[Float[Array, "64 B"]],
    out_ref: Any,
    shared_smem: Any,
    place: Place,
    rows: int,
    barriers: tuple,
    meanwhile: Callable,
) -> Any:
    """Puts this block's values into out_ref `[len(values)·rows, W]` and fills shared_smem with all
    blocks'; returns meanwhile().

    The cluster's barrier only counts: its arrival releases no memory (SASS: a bare SYNCS.ARRIVE).
    What it announces has to be in the L2 cache before. So values go by TMA alone, and the wait
    before it is for the end of their copies, not of their reads.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    arrived, exchanged = barriers
    # and all warps have done their part of the product
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for index, value in enumerate(values):
        store(
            shared_smem.at[pl.ds(index * rows, rows), place.units].T,
            value.astype(shared_smem.dtype),
        )
    plgpu.commit_smem()
    for first in range(0, len(values) * rows, 8):  # TMA reads whole tiles that follow each other
        eight = pl.ds(first, 8)
        plgpu.copy_smem_to_gmem(shared_smem.at[eight, place.units], out_ref.at[eight, place.units])
    if not place.shared:
        return meanwhile()
    plgpu.wait_smem_to_gmem(0)
    plgpu.barrier_arrive(exchanged)
    result = meanwhile()
    plgpu.barrier_wait(exchanged)
    plgpu.copy_gmem_to_smem(out_ref, shared_smem, arrived)
    plgpu.barrier_wait(arrived)
    return result
