"""The pipeline of the kernels in pallas_gpu_kernels.py: tiles of matrices come by TMA into a ring
in shared memory, ahead of the products.

Blocks of threads that need the same operand form a cluster of two and fetch it once (multicast). A
tile of 128 x 128 alone has 64 FLOPs for each byte that it reads from the L2 cache: at 7 TB/s that
is 448 of the chip's 989 TFLOP/s. Two tiles that share one operand have 85 FLOPs per byte, as one of
128 x 256 would: 597 TFLOP/s. But they keep their own registers, and two of them fit a
multiprocessor, so that one's epilogue still hides behind the other's products.
plgpu.emit_pipeline does not share tiles, and its warp-specialised
sister leaves no registers for two on a multiprocessor.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

DEPTH = 64  # what one step sums over: 128 bytes, the widest swizzle
SWIZZLE = (plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(128))


class Operand(NamedTuple):
    """A matrix in memory, the shape of its tiles, which of them a step takes, and whether the
    blocks of a cluster all take the same one.
    """

    source: Any
    shape: tuple[int, ...]
    place: Callable[[Array], tuple[Array, ...]]
    shared: bool = False


def ring(
    step: Any,
    steps: Any,
    operands: Sequence[Operand],
    agreed: Any,
    *,
    slots: int,
    carry: Any = None,
) -> Any:
    """Calls step(n, *tiles) for n < steps, the tiles of `slots` steps in shared memory; or carry =
    step(n, *tiles, carry), and returns it.

    A step's tiles are fetched when the step two before it has ended. With two slots that step must
    be finished then; with three its last WGMMA may still run. A shared tile is fetched in two
    halves, each by one block of the cluster for both. So a slot has to be free in both: they agree
    on it by the cluster's barrier `agreed`, at which one thread arrives for its block, after a
    fence at which all warps of the block meet.
    """
    share = any(operand.shared for operand in operands)
    slots = min(slots, steps) if isinstance(steps, int) else slots

    def run(filled: Any, *buffers: Any) -> Any:
        def copy(n: Any, shared: bool) -> None:
            slot = lax.rem(n, slots)
            for operand, buffer in zip(operands, buffers, strict=True):
                if operand.shared == shared:
                    place = [
                        pl.ds(at * size, size)
                        for at, size in zip(operand.place(n), operand.shape, strict=True)
                    ]
                    axes = "block" if shared else None
                    plgpu.copy_gmem_to_smem(
                        operand.source.at[*place],
                        buffer.at[slot],
                        filled.at[slot],
                        collective_axes=axes,
                    )

        def fetch(*turns: Any) -> None:
            if share:
                plgpu.commit_smem()
                plgpu.barrier_arrive(agreed)
            # first the tiles that need not wait for the other block
            for shared in (False, True) if share else (False,):
                if shared:
                    plgpu.barrier_wait(agreed)
                for n in turns:
                    pl.when(n < steps)(functools.partial(copy, n, shared))

        fetch(*map(jnp.int32, range(slots)))

        def turn(n: Array, carry: Any) -> Any:
            slot = lax.rem(n, slots)
            plgpu.barrier_wait(filled.at[slot])
            tiles = [buffer.at[slot] for buffer in buffers]
            carry = step(n, *tiles) if carry is None else step(n, *tiles, carry)
            pl.when((n >= slots - 2) & (n + 2 < steps))(functools.partial(fetch, n + 2))
            return carry

        return lax.fori_loop(0, steps, turn, carry)

    buffers = [
        plgpu.SMEM(
            (slots, *operand.shape),
            operand.source.dtype,
            transforms=SWIZZLE if len(operand.shape) > 1 else (),
        )
        for operand in operands
    ]
    return pl.run_scoped(
        run, plgpu.Barrier(num_arrivals=len(operands), num_barriers=slots), *buffers
    )
