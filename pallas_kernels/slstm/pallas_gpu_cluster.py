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
# How many parts of R `[4·64, 64]` shared memory holds: six take 192 of the 227 KB and are all of R
# up to V = 384. Wider heads have the rest of R in registers.
RESIDENT = 6


# Layout of this backend: W units, which is V filled up to a multiple of 64; the batch is filled up
# to a multiple of a block's rows. A block computes with the batch as the last axis, `[64, B]`.
Tokens = Float[Array, "B T H W"]
States = Float[Array, "S H W B"]  # S = 4: c, n, h, m
# Of each token, for the backward pass: c and n before it; i, f, z and o as they act; the derivative
# of f by its pre-activation, over f.
Kept = Float[Array, "T 7 H W B"]
Flags = Int[Array, "T B"]


class Inputs(NamedTuple):
    """A call's arrays in this layout. flags is None where no segments are given."""

    x: Float[Array, "T 4 H W B"]
    R: Float[Array, "4 H W W"]
    bias: Float[Array, "4 H W"]
    state: States
    flags: Flags | None


class Settings(NamedTuple):
    """What a call is compiled for: batch rows of a block, gradient clip, how to interpret."""

    rows: int
    clip: float | None
    interpret: Any


def resident_parts(interpret: Any, width: int) -> int:
    """Parts of R in shared memory: all of them in the simulator, which can't multiply what is in
    registers.
    """
    return min(width // UNITS, RESIDENT if interpret is False else MAX_BLOCKS)


def shared_bytes(rows: int, width: int, gates: int) -> int:
    """What a block asks for on the device: R, what is exchanged (as in `kernel`), barriers."""
    return 2 * (4 * UNITS * UNITS * resident_parts(False, width) + gates * rows * width) + 64


def default_rows(batch: int, heads: int, dim: int) -> int:
    """Batch rows of a block: 8, or 16 where blocks of 8 would be more than the GPU has
    multiprocessors and 16 fit.

    A step's product reads all of R from shared memory, however many rows it serves; the pointwise
    part of the step takes longer with more rows. From V = 384 on R leaves no shared memory (and at
    512 no registers) for more than 8 rows.
    """
    width = -(-dim // UNITS) * UNITS
    enough = heads * -(-batch // 8) * (width // UNITS) <= MULTIPROCESSORS
    fits = width <= UNITS * RESIDENT and shared_bytes(16, width, gates=4) <= SHARED_MEMORY
    return 8 if batch <= 8 or enough or not fits else 16


def kernel(
    body: Callable,
    settings: Settings,
    R: Float[Array, "4 H W W"],
    batch: int,
    *,
    out_type: list[Any],
    exchanged: int,
    approximate: bool,
    name: str,
) -> Callable:
    """body(block, *refs) as a kernel on a grid of clusters, one for each head and tile of rows.

    exchanged: how many arrays `[rows, W]` the blocks of a cluster exchange in a step; approximate:
    whether exponentials may be the hardware's.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def with_block(*refs: Any, **scratch: Any) -> None:
        body(Block(settings.rows, **scratch), *refs)

    heads, width = R.shape[1:3]
    blocks, resident = width // UNITS, resident_parts(settings.interpret, width)
    tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    scratch = dict(
        R_smem=plgpu.SMEM((resident, 4, UNITS, UNITS), R.dtype, transforms=tiled),
        shared_smem=plgpu.SMEM((exchanged * settings.rows, width), R.dtype, transforms=tiled),
        R_arrived=plgpu.Barrier(num_arrivals=4 * resident),
        arrived=plgpu.Barrier(),
    )
    cluster = {}
    if blocks > 1:
        scratch["exchanged"] = plgpu.ClusterBarrier(collective_axes=("block",))
        cluster = dict(cluster=(blocks,), cluster_names=("block",))
    return plgpu.kernel(
        with_block,
        out_type=out_type,
        grid=(heads, batch // settings.rows),
        grid_names=("head", "tile"),
        **cluster,
        scratch_types=scratch,
        interpret=settings.interpret,
        # Without this Pallas puts a barrier around each load and store, which would be most of the
        # barriers in a step. Here only `Block.publish` writes what other threads read, and it has
        # its own.
        compiler_params=plgpu.CompilerParams(
            approx_math=approximate,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
        kernel_name=name,
    )


class Block:
    """One block of threads: which head, batch rows and units it has, its part of R, and what it
    exchanges with the other blocks of its cluster.

    R_smem holds R `[parts, 4, 64, 64]` as far as it fits, shared_smem the exchanged arrays one
    below the other, `[exchanged * rows, W]`.
    """

    def __init__(
        self,
        rows: int,
        R_smem: Any,
        shared_smem: Any,
        R_arrived: Any,
        arrived: Any,
        exchanged: Any = None,
    ) -> None:
        self.rows, self.R_smem, self.shared_smem = rows, R_smem, shared_smem
        self.R_arrived, self.arrived, self.exchanged = R_arrived, arrived, exchanged
        self.R_rest: list[list[Array]] = []
        self.blocks = shared_smem.shape[1] // UNITS
        self.shared = self.blocks > 1
        self.head, self.tile = lax.axis_index("head"), lax.axis_index("tile")
        self.batch = pl.ds(self.tile * rows, rows)
        self.units = (
            pl.ds(lax.axis_index("block") * UNITS, UNITS) if self.shared else pl.ds(0, UNITS)
        )

    @property
    def place(self) -> tuple[Array, Any, Any]:
        """(head, batch rows, units)."""
        return self.head, self.batch, self.units

    def for_each_row(self, x: Float[Array, "64"]) -> Float[Array, "64 B"]:
        """One number per unit, the same for all batch rows."""
        return lax.broadcast_in_dim(x, (UNITS, self.rows), (0,))

    def for_each_column(self, x: Float[Array, " B"]) -> Float[Array, "64 B"]:
        """One number per batch row, the same for all units."""
        return lax.broadcast_in_dim(x, (UNITS, self.rows), (1,))

    def fetch(self, source: Any) -> None:
        """Begins to fill shared_smem from memory."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        plgpu.copy_gmem_to_smem(source, self.shared_smem, self.arrived)

    def wait_for_fetched(self) -> None:
        """Until what `fetch` began is there."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        plgpu.barrier_wait(self.arrived)

    def wait_for_stores(self) -> None:
        """Until all that `publish` wrote is in memory."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        plgpu.wait_smem_to_gmem(0)

    def load_R(self, R_ref: Any) -> None:
        """Fills R_smem from R `[4 H W W]`, rows of this block's units; the parts that do not fit
        stay in registers (R_rest).
        """
        from jax.experimental.pallas import mosaic_gpu as plgpu

        def part_of(part: int, gate: int) -> Any:
            return R_ref.at[gate, self.head, self.units, pl.ds(part * UNITS, UNITS)]

        resident = self.R_smem.shape[0]
        for part in range(resident):
            for gate in range(4):
                target = self.R_smem.at[part, gate]
                plgpu.copy_gmem_to_smem(part_of(part, gate), target, self.R_arrived)
        self.R_rest = [
            [load(part_of(part, gate)) for gate in range(4)]
            for part in range(resident, self.blocks)
        ]
        plgpu.barrier_wait(self.R_arrived)

    def multiply(self) -> list[Float[Array, "64 B"]]:
        """R of each gate times what was exchanged: one array `[rows, W]` for all gates, or one for
        each gate.
        """
        from jax.experimental.pallas import mosaic_gpu as plgpu

        R_smem, rows, resident = self.R_smem, self.rows, self.R_smem.shape[0]
        own = self.shared_smem.shape[0] > rows

        def operand(gate: int, part: Any) -> Any:
            its_rows = pl.ds(gate * rows if own else 0, rows)
            return self.shared_smem.at[its_rows, pl.ds(part * UNITS, UNITS)].T

        def total(*sums: Any) -> list[Array]:
            # A loop and not unrolled: the matrix descriptors of all parts at once would take the
            # registers that everything else needs.
            @pl.loop(0, resident)
            def _(part: Array) -> None:
                for gate in range(4):
                    plgpu.wgmma(sums[gate], R_smem.at[part, gate], operand(gate, part))

            for part, gates in enumerate(self.R_rest, start=resident):
                # The barrier makes the compiler compute the operands' addresses here, each time.
                # Without it they stay in 64 registers for the whole sequence.
                part = lax.optimization_barrier(jnp.int32(part))
                for gate in range(4):
                    plgpu.wgmma(sums[gate], gates[gate], operand(gate, part))
            return [x[...] for x in sums]

        return pl.run_scoped(total, *[plgpu.ACC((UNITS, rows), jnp.float32)] * 4)

    def publish(self, values: list[Float[Array, "64 B"]], out_ref: Any, meanwhile: Callable) -> Any:
        """Puts this block's values into out_ref `[len(values)·rows, W]` and fills shared_smem with
        those of all blocks; returns meanwhile(), which runs while this block waits for the others.

        The cluster's barrier only counts arrivals, it does not make earlier writes visible to the
        other blocks (the machine code has a bare SYNCS.ARRIVE). So the values must be in the L2
        cache before a block arrives: only TMA writes them, and the block first waits until these
        copies are complete, not merely until their source has been read.
        """
        from jax.experimental.pallas import mosaic_gpu as plgpu

        shared_smem, rows = self.shared_smem, self.rows
        # shared_smem is free: TMA has read the values of the step before, and (the same call) all
        # warps have done their part of the product
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for index, value in enumerate(values):
            store(
                shared_smem.at[pl.ds(index * rows, rows), self.units].T,
                value.astype(shared_smem.dtype),
            )
        plgpu.commit_smem()
        # one tile of 8 rows at a time: TMA reads tiles that lie one after the other in memory
        for first in range(0, len(values) * rows, 8):
            eight = pl.ds(first, 8)
            source = shared_smem.at[eight, self.units]
            plgpu.copy_smem_to_gmem(source, out_ref.at[eight, self.units])
        if not self.shared:
            return meanwhile()
        plgpu.wait_smem_to_gmem(0)
        plgpu.barrier_arrive(self.exchanged)
        result = meanwhile()
        plgpu.barrier_wait(self.exchanged)
        self.fetch(out_ref)
        self.wait_for_fetched()
        return result


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
