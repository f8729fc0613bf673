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

from typing import Any, NamedTuple

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
SQUARE = (TOKENS, TOKENS)
OF_LATER = ("row", "row_low", "per_d", "slope")  # numbers of the later token of a pair


class ChunkNumbers(NamedTuple):
    """Numbers of all tokens of a chunk by name, and their documents, in shared memory.

    Attributes:
        values: [slots, L] float32.
        slots: where each name is.
        documents: [L] int32.
    """

    values: Any
    slots: dict[str, int]
    documents: Any

    def of(self, name: str, tile: Array) -> Array:
        """Of a tile's tokens, in registers of the layout ROWS."""
        return plgpu.load(self.values.at[self.slots[name], _tokens(tile)], layout=ROWS)

    def weighted(
        self, options: Options, P: Array, mine: Array, theirs: Array, transposed: bool
    ) -> Array:
        """The products P of one tile's tokens with another's as pairs: s D per_d (P + slope), each
        where it is given, and 0 where the later token does not see the earlier one. The rows are of
        the tile `mine`, which has the earlier tokens if transposed.
        """

        def of(name: str) -> Array:
            if (name in OF_LATER) == transposed:
                there = self.values.at[self.slots[name], _tokens(theirs)]
                return for_each_column(there, SQUARE)
            return along_rows(self.of(name, mine), SQUARE)

        P = P + of("slope") if "slope" in self.slots else P
        P = P * of("per_d") if "per_d" in self.slots else P
        low = of("col_low") + of("row_low") if "row_low" in self.slots else of("col_low")
        row, column = (
            plgpu.broadcasted_iota(jnp.int32, SQUARE, axis, layout=plgpu.Layout.WGMMA)
            + tile * TOKENS
            for axis, tile in enumerate((mine, theirs))
        )
        causal = row <= column if transposed else column <= row
        same = for_each_row(self.documents.at[_tokens(mine)], SQUARE) == for_each_column(
            self.documents.at[_tokens(theirs)], SQUARE
        )
        return weighted(options, P, of("row") + of("col"), low, same & causal)


def _tokens(tile: Array) -> Any:
    return pl.ds(tile * TOKENS, TOKENS)


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
    numbers = dict(zip(OF_LATER, (gates.row, gates.row_low, per_d, slope), strict=True))
    numbers |= {"col": gates.col, "col_low": gates.col_low, "of_state": of_state, "qn": qn}
    numbers |= {} if normaliser is None and qn is None else {"floor": gates.floor}
    numbers = {name: a for name, a in numbers.items() if a is not None}
    slots = {name: slot for slot, name in enumerate(numbers)}
    vectors = {"n": normaliser, "vector": vector}
    vectors = {name: a for name, a in vectors.items() if a is not None}
    rows = {"h": h, "dot_with": dot_with}
    optional = numbers | vectors | {name: a for name, a in rows.items() if a is not None}
    results = ["out"]
    results += ["total"] if normaliser is not None or h is not None else []
    results += ["dots"] if dot_with is not None else []
    scratch = {
        "values": plgpu.SMEM((len(slots), options.chunk), jnp.float32),
        "documents": plgpu.SMEM((options.chunk,), jnp.int32),
        "totals": plgpu.SMEM((2, TOKENS), jnp.float32),
        **{f"{name} smem": plgpu.SMEM(a.shape[-1:], jnp.float32) for name, a in vectors.items()},
        "barrier": plgpu.Barrier(num_arrivals=2 + len(slots) + len(vectors) + (h is not None)),
        "dot_barrier": plgpu.Barrier(),
        "agreed": plgpu.ClusterBarrier(collective_axes=("block",)),
    }
    names = [*optional, *results, *scratch]

    def mlstm_attend(x, z, y, states, document, *others):
        refs = dict(zip(names, others, strict=True))
        totals, barrier, agreed = (refs[name] for name in ("totals", "barrier", "agreed"))
        numbers = ChunkNumbers(refs["values"], slots, refs["documents"])
        b, head = batch_and_head(heads)
        place = lax.axis_index("tiles") * BLOCKS + lax.axis_index("block")
        chunk, mine = place // tiles, place % tiles
        tokens, in_chunk = _tokens(place), pl.ds(chunk * options.chunk, options.chunk)
        whole = (TOKENS, width)

        plgpu.copy_gmem_to_smem(document.at[b, in_chunk], numbers.documents, barrier)
        for name, slot in slots.items():
            there = numbers.values.at[slot]
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, in_chunk], there, barrier)
        for name in vectors:
            plgpu.copy_gmem_to_smem(refs[name].at[b, head, chunk], refs[f"{name} smem"], barrier)

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
        own_slope = None
        if qn is not None:
            own_slope = normaliser_slope(total, numbers.of("qn", mine), numbers.of("floor", mine))
        if normaliser is not None:
            by_n = x_rows.astype(jnp.float32) * for_each_column(refs["n smem"], x_rows.shape)
            total = numbers.of("of_state", mine) * jnp.sum(by_n, axis=1)

        def from_state(acc):
            def step(_, state):
                state = state.transpose((1, 0)) if state_transposed else state
                add_product(options, acc, x_rows, state)

            state = Operand(
                states.at[b, head, chunk], states.shape[-2:], lambda _: (0, 0), shared=True
            )
            ring(step, 1, [state], agreed, slots=1)
            return acc[...]

        result = pl.run_scoped(from_state, plgpu.ACC(whole, jnp.float32))
        if vector is not None:
            plus = for_each_column(refs["vector smem"], whole)
            result = result + (plus if own_slope is None else along_rows(own_slope, whole) * plus)
        result = result * along_rows(numbers.of("of_state", mine), whole)

        # a cluster goes through the tiles of both of its blocks
        first = mine // BLOCKS * BLOCKS if pairs_transposed else jnp.int32(0)
        steps = tiles - first if pairs_transposed else mine // BLOCKS * BLOCKS + BLOCKS

        def step(turn, z, y, carry):
            result, total = carry

            def products(acc):
                add_product(options, acc, x_rows, z.transpose((1, 0)))
                return acc[...]

            P = pl.run_scoped(products, plgpu.ACC(SQUARE, jnp.float32))
            P = P if own_slope is None else P + along_rows(own_slope, SQUARE)
            P = numbers.weighted(options, P, mine, first + turn, pairs_transposed)
            if normaliser is not None:
                total = total + jnp.sum(P, axis=1)
            P = P.astype(x.dtype)
            return accumulate(options, lambda acc: add_product(options, acc, P, y), result), total

        begin = chunk * tiles + first
        operands = [
            Operand(a.at[b, :, head], (TOKENS, size), lambda turn: (begin + turn, 0), shared=True)
            for a, size in ((z, depth), (y, width))
        ]
        result, total = ring(step, steps, operands, agreed, slots=2, carry=(result, total))
        if normaliser is not None:
            per_d = per_denominator(total, numbers.of("floor", mine), options.eps)
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
