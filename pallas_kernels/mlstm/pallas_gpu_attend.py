"""The Mosaic GPU kernel (Hopper, sm_90a) of the mLSTM's narrow heads: a chunk's pairs are made
where they are used, so that none goes through memory; see pallas_gpu.py.

One warpgroup computes 64 tokens of the output in all their columns, with its own side of the pairs
(queries, say) in registers, and goes through the chunk's other tokens 64 at a time: their keys and
values come by TMA into a ring, the pairs are a product of registers and the ring, are weighted in
float32 registers, rounded, and multiplied by the values. Two neighbouring tiles of tokens are a
cluster (pallas_gpu_ring.py), which fetches state, keys and values once for both, and therefore goes
through the tokens of both: of a tile that lies wholly above the diagonal all pairs are 0. Two
blocks fit a multiprocessor: 96 KB of shared memory for the ring of a head of 128/256, and the
accumulators of 64 x 256 and 64 x 64 beside 64 x 128 of its own side in 255 registers a thread.
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
    blocks_of,
    call,
    for_each_column,
    for_each_row,
    smem,
    weighted,
)
from pallas_kernels.typing import Keys, Values

TOKENS = DEPTH  # of a tile, and of a step


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
    outputs: tuple[Keys, TokenNumbers | None] | None = None,
    dot_with: Values | None = None,
    state_transposed: bool = False,
    pairs_transposed: bool = False,
) -> tuple[Values, TokenNumbers | None, TokenNumbers | None]:
    """out_t = sum_s P_ts y_s + of_state_t (x_t·state + vector), state and vector their chunk's, and
    P_ts = s D_ts per_d_t (x_t·z_s + slope_t) for s <= t of a chunk, rounded to the type of x.

    Transposed pairs sum over the later tokens, P_st = s D_st per_d_s (z_s·x_t + slope_s), s >= t.
    Transposed states are `B H N V K`. The second result is a float32 number of each token:
    * with the normaliser n, qn_t = sum_s P_ts + of_state_t x_t·n, and out is divided by max(|qn_t|,
      floor_t) + eps;
    * with (h, qn) as outputs, of which x is the gradient, h_t·x_t; slope is made of it here, and
      the vector is multiplied by it (without a normaliser qn and vector are None, and slope 0).
    The third one is, with dot_with, its rows' dot products with those of out before rounding.
    """
    batch, time, heads, depth = x.shape
    width = y.shape[-1]
    tiles = options.chunk // TOKENS
    blocks = blocks_of(tiles)
    h, qn = outputs or (None, None)
    # the numbers of the later and of the earlier token of a pair
    later = {"row": gates.row, "row_low": gates.row_low, "per_d": per_d, "slope": slope}
    earlier = {"col": gates.col, "col_low": gates.col_low}
    own = {"of_state": of_state, "qn": qn}
    own |= {} if normaliser is None and qn is None else {"floor": gates.floor}
    per_token = {name: a for name, a in (later | earlier | own).items() if a is not None}
    slots = {name: slot for slot, name in enumerate(per_token)}
    vectors = {"n": normaliser, "vector": vector}
    vectors = {name: a for name, a in vectors.items() if a is not None}
    rows = {"h": h, "dot_with": dot_with}
    optional = per_token | vectors | {name: a for name, a in rows.items() if a is not None}
    results = ["out"]
    results += ["total"] if normaliser is not None or outputs else []
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
        tile = lax.axis_index("tiles") * blocks + lax.axis_index("block")
        chunk, mine = tile // tiles, tile % tiles
        tokens, in_chunk = pl.ds(tile * TOKENS, TOKENS), pl.ds(chunk * options.chunk, options.chunk)
        whole, square = (TOKENS, width), (TOKENS, TOKENS)

        plgpu.copy_gmem_to_smem(document.at[b, in_chunk], ids, barrier)
        for name, slot in slots.items():
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, in_chunk], numbers.at[slot], barrier)
        for name in vectors:
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, chunk], refs[f"{name} smem"], barrier)

        def own(name):
            """A number of this block's tokens."""
            at = pl.ds(mine * TOKENS, TOKENS)
            return plgpu.load(numbers.at[slots[name], at], layout=ROWS)

        def dots(rows, tile):
            """Of rows in registers with those of a tile."""
            other = plgpu.load(tile, layout=plgpu.Layout.WGMMA).astype(jnp.float32)
            return jnp.sum(rows.astype(jnp.float32) * other, axis=1)

        def own_rows(*tiles):
            """x, and h·x where h is given."""
            for source, tile in zip([x] if h is None else [x, refs["h"]], tiles, strict=True):
                plgpu.copy_gmem_to_smem(source.at[b, tokens, head], tile, barrier)
            plgpu.barrier_wait(barrier)
            rows = plgpu.load(tiles[0], layout=plgpu.Layout.WGMMA)
            if h is not None:
                return rows, dots(rows, tiles[1])
            return rows, plgpu.layout_cast(jnp.zeros((TOKENS,), jnp.float32), ROWS)

        tile = smem((TOKENS, depth), x.dtype)
        x_rows, total = pl.run_scoped(own_rows, *([tile] if h is None else [tile, tile]))
        plgpu.commit_smem()  # all warps have read them: the ring begins in their place
        slope = None if qn is None else normaliser_slope(total, own("qn"), own("floor"))
        if normaliser is not None:
            by_n = x_rows.astype(jnp.float32) * for_each_column(refs["n smem"], x_rows.shape)
            total = own("of_state") * jnp.sum(by_n, axis=1)

        def from_state(acc):
            def step(_, state):
                state = state.transpose((1, 0)) if state_transposed else state
                add_product(options, acc, x_rows, state)

            state = states.at[b, head, chunk]
            whole_state = Operand(state, states.shape[-2:], lambda _: (0, 0), blocks > 1)
            ring(step, 1, (whole_state,), agreed, slots=1)
            return acc[...]

        result = pl.run_scoped(from_state, plgpu.ACC(whole, jnp.float32))
        if vector is not None:
            plus = for_each_column(refs["vector smem"], whole)
            result = result + (plus if slope is None else along_rows(slope, whole) * plus)
        result = result * along_rows(own("of_state"), whole)
        plgpu.commit_smem()  # the next ring takes the place of this one

        # a cluster goes through the tiles of both of its blocks
        first = mine // blocks * blocks if pairs_transposed else jnp.int32(0)
        steps = tiles - first if pairs_transposed else mine // blocks * blocks + blocks

        def step(n, z, y, carry):
            result, total = carry
            theirs = first + n

            def of(name):
                """A number of each pair's later or earlier token."""
                if (name in later) == pairs_transposed:
                    at = pl.ds(theirs * TOKENS, TOKENS)
                    return for_each_column(numbers.at[slots[name], at], square)
                return along_rows(own(name), square)

            def at(spread, tile):
                return spread(ids.at[pl.ds(tile * TOKENS, TOKENS)], square)

            def products(acc):
                add_product(options, acc, x_rows, z.transpose((1, 0)))
                return acc[...]

            P = pl.run_scoped(products, plgpu.ACC(square, jnp.float32))
            if slope is not None:
                P = P + along_rows(slope, square)
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
            same = at(for_each_row, mine) == at(for_each_column, theirs)
            P = weighted(options, P, of("row") + of("col"), low, same & causal)
            if normaliser is not None:
                total = total + jnp.sum(P, axis=1)
            P = P.astype(x.dtype)
            return accumulate(options, lambda acc: add_product(options, acc, P, y), result), total

        begin = chunk * tiles + first
        operands = [
            Operand(a.at[b, :, head], (TOKENS, size), lambda n: (begin + n, 0), blocks > 1)
            for a, size in ((z, depth), (y, width))
        ]
        result, total = ring(step, steps, operands, agreed, slots=2, carry=(result, total))
        if normaliser is not None:
            per_d = per_denominator(total, own("floor"), options.eps)
            result = result * along_rows(per_d, whole)

        plgpu.commit_smem()  # the result takes the place of the ring

        def write(tile):
            written = {"total": total} if "total" in results else {}
            if dot_with is not None:
                source, dot_barrier = refs["dot_with"].at[b, tokens, head], refs["dot_barrier"]
                plgpu.copy_gmem_to_smem(source, tile, dot_barrier)
                plgpu.barrier_wait(dot_barrier)
                written["dots"] = dots(result, tile)
            tile[...] = result.astype(tile.dtype)
            for slot, a in enumerate(written.values()):
                totals[slot] = a
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(tile, refs["out"].at[b, tokens, head])
            for slot, name in enumerate(written):
                plgpu.copy_smem_to_gmem(totals.at[slot], refs[name].at[b, head, tokens])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, smem(whole, y.dtype))

    found = call(
        mlstm_attend,
        options,
        {"bh": batch * heads, "tiles": time // TOKENS // blocks},
        [
            jax.ShapeDtypeStruct(y.shape, y.dtype),
            *[jax.ShapeDtypeStruct((batch, heads, time), jnp.float32)] * (len(results) - 1),
        ],
        list(scratch.values()),
        blocks,
    )(x, z, y, states, gates.document, *optional.values())
    found = dict(zip(results, found, strict=True))
    return found["out"], found.get("total"), found.get("dots")
