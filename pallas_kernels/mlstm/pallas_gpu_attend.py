"""The Mosaic GPU kernel (Hopper, sm_90a) of the mLSTM's narrow heads: a chunk's pairs are made
where they are used, so that none goes through memory; see pallas_gpu.py.

One warpgroup computes 64 tokens of the output in all their columns, with its own side of the pairs
(queries, say) in registers, and goes through the chunk's other tokens 64 at a time: their keys and
values come by TMA into a ring, the pairs are a product of registers and the ring, are weighted in
float32 registers, rounded, and multiplied by the values. Two neighbouring tiles of tokens are a
cluster (pallas_gpu_ring.py), which fetches state, keys and values once for both, and therefore goes
through the tokens of both: of a tile that lies wholly above the diagonal all pairs are 0. Two
blocks fit a multiprocessor. Of a head of 128/256 a block has 96 KB for the ring and 12 KB for
numbers, and in its 255 registers a thread accumulators of 64 x 256 and 64 x 64 beside 64 x 128 of
its own side; ptxas spills a few more (docs/aot_gpu.md).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.mlstm.gates import (
    ChunkGates,
    TokenNumbers,
    normaliser_slope,
    per_denominator,
)
from pallas_kernels.mlstm.pallas_gpu_ring import DEPTH, Operand, ring
from pallas_kernels.mlstm.pallas_gpu_tiles import (
    ROWS,
    Options,
    accumulate,
    add_product,
    along_rows,
    batch_and_head,
    call,
    for_each_column,
    for_each_row,
    smem,
    weighted,
)
from pallas_kernels.typing import Keys, Values

TOKENS = DEPTH  # of a tile, and of a step
BLOCKS = 2  # of a cluster: neighbours in a chunk, which has at least two tiles


def attend(
    options: Options,
    x: Keys,
    z: Keys,
    y: Values,
    states: Float[Array, "B H N K V"],
    gates: ChunkGates,
    of_state: TokenNumbers,
    *,
    per_d: TokenNumbers | None = None,
    slope: TokenNumbers | None = None,
    vector: Float[Array, "B H N V"] | None = None,
    normaliser: Float[Array, "B H N K"] | None = None,
    gradient_of: tuple[Keys, TokenNumbers] | None = None,
    dot_with: Values | None = None,
    state_transposed: bool = False,
    pairs_transposed: bool = False,
) -> tuple[Values, TokenNumbers | None, TokenNumbers | None]:
    """out_t = sum_s P_ts y_s + of_state_t (x_t state + vector), state and vector their chunk's, and
    P_ts = s D_ts per_d_t (x_t·z_s + slope_t) for s <= t of a chunk, rounded to the type of x.

    Transposed pairs sum over the later tokens, P_st = s D_st per_d_s (z_s·x_t + slope_s), s >= t.
    Transposed states are `B H N V K`. The second result is a float32 number of each token:
    * with the normaliser n, qn_t = sum_s P_ts + of_state_t x_t·n, and out is divided by max(|qn_t|,
      floor_t) + eps;
    * with gradient_of = (h, qn), whose gradient x is, h_t·x_t: slope_t is then computed from it and
      from qn_t, and of the vector every token has slope_t times the vector.
    The third one is, with dot_with, its rows' dot products with those of out before rounding.
    """
    batch, time, heads, depth = x.shape
    width, tiles = y.shape[-1], options.chunk // TOKENS
    h, qn = gradient_of or (None, None)
    # the numbers of the later and of the earlier token of a pair, and those of a block's own tokens
    later = {"row": gates.row, "row_low": gates.row_low, "per_d": per_d, "slope": slope}
    earlier = {"col": gates.col, "col_low": gates.col_low}
    alone = {"of_state": of_state, "qn": qn}
    alone |= {} if normaliser is None and qn is None else {"floor": gates.floor}
    numbers_of = {name: a for name, a in (later | earlier | alone).items() if a is not None}
    slots = {name: slot for slot, name in enumerate(numbers_of)}
    vectors = {"n": normaliser, "vector": vector}
    vectors = {name: a for name, a in vectors.items() if a is not None}
    rows = {"h": h, "dot_with": dot_with}
    optional = numbers_of | vectors | {name: a for name, a in rows.items() if a is not None}
    results = ["out"]
    results += ["total"] if normaliser is not None or h is not None else []
    results += ["dots"] if dot_with is not None else []
    scratch = {
        "numbers": plgpu.SMEM((len(slots), options.chunk), jnp.float32),
        "ids": plgpu.SMEM((options.chunk,), jnp.int32),
        "totals": plgpu.SMEM((2, TOKENS), jnp.float32),
        **{f"{name} smem": plgpu.SMEM(a.shape[-1:], jnp.float32) for name, a in vectors.items()},
        "barrier": plgpu.Barrier(num_arrivals=2 + len(slots) + len(vectors) + (h is not None)),
        "dot_barrier": plgpu.Barrier(),
        "agreed": plgpu.ClusterBarrier(collective_axes=("block",)),
    }
    names = [*optional, *results, *scratch]

    def mlstm_attend(x, z, y, states, document, *others):
        refs = dict(zip(names, others, strict=True))
        numbers, ids, totals, barrier, agreed = (
            refs[name] for name in ("numbers", "ids", "totals", "barrier", "agreed")
        )
        b, head = batch_and_head(heads)
        place = lax.axis_index("tiles") * BLOCKS + lax.axis_index("block")
        chunk, mine = place // tiles, place % tiles
        tokens = pl.ds(place * TOKENS, TOKENS)
        in_chunk = pl.ds(chunk * options.chunk, options.chunk)
        whole, square = (TOKENS, width), (TOKENS, TOKENS)

        plgpu.copy_gmem_to_smem(document.at[b, in_chunk], ids, barrier)
        for name, slot in slots.items():
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, in_chunk], numbers.at[slot], barrier)
        for name in vectors:
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, chunk], refs[f"{name} smem"], barrier)

        def own(name):
            """A number of this block's tokens."""
            return plgpu.load(numbers.at[slots[name], pl.ds(mine * TOKENS, TOKENS)], layout=ROWS)

        def dots(rows, buffer):
            """Of rows in registers with those of a tile in shared memory."""
            other = plgpu.load(buffer, layout=plgpu.Layout.WGMMA).astype(jnp.float32)
            return jnp.sum(rows.astype(jnp.float32) * other, axis=1)

        def own_rows(*buffers):
            """x, and h·x where h is given."""
            for source, buffer in zip([x] if h is None else [x, refs["h"]], buffers, strict=True):
                plgpu.copy_gmem_to_smem(source.at[b, tokens, head], buffer, barrier)
            plgpu.barrier_wait(barrier)
            rows = plgpu.load(buffers[0], layout=plgpu.Layout.WGMMA)
            if h is not None:
                return rows, dots(rows, buffers[1])
            return rows, plgpu.layout_cast(jnp.zeros((TOKENS,), jnp.float32), ROWS)

        # The rings take the place of these tiles, and the second that of the first: each begins
        # with a fence at which all warps of both blocks meet.
        buffer = smem((TOKENS, depth), x.dtype)
        x_rows, total = pl.run_scoped(own_rows, *([buffer] if h is None else [buffer, buffer]))
        own_slope = None if qn is None else normaliser_slope(total, own("qn"), own("floor"))
        if normaliser is not None:
            by_n = x_rows.astype(jnp.float32) * for_each_column(refs["n smem"], x_rows.shape)
            total = own("of_state") * jnp.sum(by_n, axis=1)

        def from_state(acc):
            def step(_, state):
                state = state.transpose((1, 0)) if state_transposed else state
                add_product(options, acc, x_rows, state)

            state = states.at[b, head, chunk]
            ring(
                step,
                1,
                (Operand(state, states.shape[-2:], lambda _: (0, 0), True),),
                agreed,
                slots=1,
            )
            return acc[...]

        result = pl.run_scoped(from_state, plgpu.ACC(whole, jnp.float32))
        if vector is not None:
            plus = for_each_column(refs["vector smem"], whole)
            result = result + (plus if own_slope is None else along_rows(own_slope, whole) * plus)
        result = result * along_rows(own("of_state"), whole)

        # a cluster goes through the tiles of both of its blocks
        first = mine // BLOCKS * BLOCKS if pairs_transposed else jnp.int32(0)
        steps = tiles - first if pairs_transposed else mine // BLOCKS * BLOCKS + BLOCKS

        def step(turn, z, y, carry):
            result, total = carry
            theirs = first + turn

            def of(name):
                """A number of each pair's later or earlier token."""
                if (name in later) == pairs_transposed:
                    of_theirs = numbers.at[slots[name], pl.ds(theirs * TOKENS, TOKENS)]
                    return for_each_column(of_theirs, square)
                return along_rows(own(name), square)

            def document_of(tile, spread):
                return spread(ids.at[pl.ds(tile * TOKENS, TOKENS)], square)

            def products(acc):
                add_product(options, acc, x_rows, z.transpose((1, 0)))
                return acc[...]

            P = pl.run_scoped(products, plgpu.ACC(square, jnp.float32))
            if own_slope is not None:
                P = P + along_rows(own_slope, square)
            elif "slope" in slots:
                P = P + of("slope")
            P = P * of("per_d") if "per_d" in slots else P
            low = of("col_low") + of("row_low") if "row_low" in slots else of("col_low")
            row, column = (
                plgpu.broadcasted_iota(jnp.int32, square, axis, layout=plgpu.Layout.WGMMA)
                + tile * TOKENS
                for axis, tile in enumerate((mine, theirs))
            )
            causal = row <= column if pairs_transposed else column <= row
            same = document_of(mine, for_each_row) == document_of(theirs, for_each_column)
            P = weighted(options, P, of("row") + of("col"), low, same & causal)
            if normaliser is not None:
                total = total + jnp.sum(P, axis=1)
            P = P.astype(x.dtype)
            return accumulate(options, lambda acc: add_product(options, acc, P, y), result), total

        begin = chunk * tiles + first
        operands = [
            Operand(a.at[b, :, head], (TOKENS, size), lambda turn: (begin + turn, 0), True)
            for a, size in ((z, depth), (y, width))
        ]
        result, total = ring(step, steps, operands, agreed, slots=2, carry=(result, total))
        if normaliser is not None:
            per_d = per_denominator(total, own("floor"), options.eps)
            result = result * along_rows(per_d, whole)
        plgpu.commit_smem()  # all warps meet: the result takes the place of the ring

        def write(buffer):
            written = {"total": total} if "total" in results else {}
            if dot_with is not None:
                source, dot_barrier = refs["dot_with"].at[b, tokens, head], refs["dot_barrier"]
                plgpu.copy_gmem_to_smem(source, buffer, dot_barrier)
                plgpu.barrier_wait(dot_barrier)
                written["dots"] = dots(result, buffer)
            buffer[...] = result.astype(buffer.dtype)
            for slot, a in enumerate(written.values()):
                totals[slot] = a
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(buffer, refs["out"].at[b, tokens, head])
            for slot, name in enumerate(written):
                plgpu.copy_smem_to_gmem(totals.at[slot], refs[name].at[b, head, tokens])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, smem(whole, y.dtype))

    found = call(
        mlstm_attend,
        options,
        {"bh": batch * heads, "tiles": time // TOKENS // BLOCKS},
        [
            jax.ShapeDtypeStruct(y.shape, y.dtype),
            *[jax.ShapeDtypeStruct((batch, heads, time), jnp.float32)] * (len(results) - 1),
        ],
        list(scratch.values()),
        BLOCKS,
    )(x, z, y, states, gates.document, *optional.values())
    found = dict(zip(results, found, strict=True))
    return found["out"], found.get("total"), found.get("dots")
