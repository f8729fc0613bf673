"""The three Mosaic GPU kernels (Hopper, sm_90a) that the mLSTM's forward and backward passes are
made of; see pallas_gpu.py.

Each is a product of matrices with TMA pipelines and WGMMA: one warpgroup per block of threads
computes one tile of at most 128 x 128 in float32 registers (128 a thread). Two such blocks fit a
multiprocessor: a block takes at most 255 registers a thread, and at most 96 KB of shared memory for
its ring of tiles, which is used again for the result. So one block's products run while the other
waits or writes, and no warp has to be set apart for copies. In
`walk` and `combine` two blocks side by side in the width of the output are a cluster, which fetches
their common operand once (pallas_gpu_ring.py). Chunks are multiples of the tile's rows, so that a
tile lies in one chunk. Tokens are `B T H *`, TMA slices the head out. The last axis of a grid is
the fastest: blocks that read the same tiles of a chunk (of a whole sequence, in `walk`) run at the
same time, so that memory is read once for all.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers
from pallas_kernels.mlstm.pallas_gpu_ring import DEPTH, Operand, ring
from pallas_kernels.mlstm.pallas_gpu_tiles import (
    Options,
    accumulate,
    batch_and_head,
    blocks_of,
    call,
    for_each_column,
    for_each_row,
    smem,
    tile_of,
    weighted,
    wide_tile,
)
from pallas_kernels.typing import Keys, Values


def walk(
    options: Options,
    x: Keys,
    y: Values,
    a: TokenNumbers,
    w_last: Float[Array, "B H N"],
    X: Float[Array, "B H K V"] | None,
    *,
    reverse: bool = False,
    keep_last: bool = True,
) -> tuple[Float[Array, "B H N K V"], Float[Array, "B H K V"] | None]:
    """X <- w_last X + sum of a_t x_t y_t, chunk by chunk: X before each chunk, in the type of y,
    and after the last in float32 (None unless keep_last). It begins with zeros where X is None.

    a_t x_t is rounded to the type of x; X itself stays in float32 registers from the first chunk to
    the last.
    """
    batch, time, heads, tall_dim = x.shape
    wide_dim, per_chunk = y.shape[-1], options.chunk // DEPTH
    chunks, tall, wide, steps = (
        time // options.chunk,
        tile_of(tall_dim),
        tile_of(wide_dim),
        time // DEPTH,
    )
    blocks, given = blocks_of(wide_dim // wide), 0 if X is None else 1

    def mlstm_walk(x, y, a, w_last, *refs):
        first, (states, *last, state, agreed) = refs[:given], refs[given:]
        b, head = batch_and_head(heads)
        tall_at, wide_at = lax.axis_index("tall"), wide_tile(blocks)
        i, j = pl.ds(tall_at * tall, tall), pl.ds(wide_at * wide, wide)

        def place(at):
            return steps - 1 - at if reverse else at

        def step(at, x, y, a, X):
            n = at // per_chunk
            n = chunks - 1 - n if reverse else n
            begins = at % per_chunk == 0

            def begin(X):
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                state[...] = X.astype(state.dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(state, states.at[b, head, n, i, j])
                return X * w_last[b, head, n]

            X = lax.cond(begins, begin, lambda X: X, X)
            numbers = plgpu.load(x, layout=plgpu.Layout.WGMMA).astype(jnp.float32)
            numbers = numbers * for_each_row(a, numbers.shape)
            # The product overwrites x in its slot of the ring. With a buffer of its own only one
            # block would fit a multiprocessor.
            x[...] = numbers.astype(x.dtype)
            plgpu.commit_smem()
            return accumulate(options, lambda X: plgpu.wgmma(X, x.transpose((1, 0)), y), X)

        operands = (
            Operand(x.at[b, :, head], (DEPTH, tall), lambda at: (place(at), tall_at), blocks > 1),
            Operand(y.at[b, :, head], (DEPTH, wide), lambda at: (place(at), wide_at)),
            Operand(a.at[b, head], (DEPTH,), lambda at: (place(at),)),
        )
        if first:
            (X,) = first
            X = plgpu.load(X.at[b, head, i, j], layout=plgpu.Layout.WGMMA, optimized=False)
        else:
            X = plgpu.layout_cast(jnp.zeros((tall, wide), jnp.float32), plgpu.Layout.WGMMA)
        X = ring(step, steps, operands, agreed, slots=2, carry=X)
        if last:
            last[0][b, head, i, j] = X
        plgpu.wait_smem_to_gmem(0)

    of_last = jax.ShapeDtypeStruct((batch, heads, tall_dim, wide_dim), jnp.float32)
    states, *last = call(
        mlstm_walk,
        options,
        {"bh": batch * heads, "tall": tall_dim // tall, "wide": wide_dim // wide // blocks},
        [
            jax.ShapeDtypeStruct((batch, heads, chunks, tall_dim, wide_dim), y.dtype),
            *([of_last] if keep_last else []),
        ],
        [smem((tall, wide), y.dtype), plgpu.ClusterBarrier(collective_axes=("block",))],
        blocks,
    )(x, y, a, w_last, *(() if X is None else (X,)))
    return states, last[0] if keep_last else None


def pairs(
    options: Options,
    x: Keys,
    y: Keys,
    gates: ChunkGates,
    times: TokenNumbers,
    plus: TokenNumbers,
) -> tuple[Float[Array, "B H T L"], TokenNumbers]:
    """P_ts = s D_ts (times_t x_t·y_s + plus_t) for all s <= t of a chunk, in the type of x, and its
    float32 sums over s.

    Tiles above the diagonal are not written.
    """
    batch, time, heads, width = x.shape
    rows = options.rows
    tiles = options.chunk // rows
    # row_low is None, for zeros, with the exponential gate
    of_rows = [gates.row, times, plus, *([] if gates.row_low is None else [gates.row_low])]
    of_columns = [gates.col, gates.col_low]
    count = len(of_rows) + len(of_columns)

    def mlstm_pairs(x, y, document, *refs):
        per_token, (out, sums, total, numbers, ids, barrier) = refs[:count], refs[count:]
        b, head = batch_and_head(heads)
        chunk, pair = lax.axis_index("chunk"), lax.axis_index("pair")
        t = (
            sum((pair >= m * (m + 1) // 2).astype(jnp.int32) for m in range(1, tiles))
            if tiles > 1
            else jnp.int32(0)
        )
        s = pair - t * (t + 1) // 2
        of_t, of_s = (pl.ds(chunk * options.chunk + n * rows, rows) for n in (t, s))
        places = [of_t] * len(of_rows) + [of_s] * len(of_columns)
        for slot, (source, at) in enumerate(zip(per_token, places, strict=True)):
            plgpu.copy_gmem_to_smem(source.at[b, head, at], numbers.at[slot], barrier)
        for slot, at in enumerate((of_t, of_s)):
            plgpu.copy_gmem_to_smem(document.at[b, at], ids.at[slot], barrier)

        def products(acc):
            def step(_, x, y):
                plgpu.wgmma(acc, x, y.transpose((1, 0)))
                plgpu.wgmma_wait(1)

            operands = [
                Operand(z.at[b, :, head], (rows, DEPTH), lambda d, n=n: (chunk * tiles + n, d))
                for z, n in ((x, t), (y, s))
            ]
            ring(step, width // DEPTH, operands, None, slots=3)
            return acc[...]

        S = pl.run_scoped(products, plgpu.ACC((rows, rows), jnp.float32))
        plgpu.barrier_wait(barrier)
        row, times, plus, *row_low = (
            for_each_row(numbers.at[slot], S.shape) for slot in range(len(of_rows))
        )
        col, low = (for_each_column(numbers.at[count - 2 + n], S.shape) for n in range(2))
        if row_low:
            low = row_low[0] + low
        same = for_each_row(ids.at[0], S.shape) == for_each_column(ids.at[1], S.shape)
        of_t, of_s = (
            plgpu.broadcasted_iota(jnp.int32, S.shape, axis, layout=plgpu.Layout.WGMMA)
            for axis in (0, 1)
        )
        causal = of_s + s * rows <= of_t + t * rows
        P = weighted(options, S * times + plus, row + col, low, same & causal)
        t = pl.ds(chunk * options.chunk + t * rows, rows)

        def write(tile):
            tile[...] = P.astype(tile.dtype)
            total[...] = jnp.sum(P, axis=1)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(tile, out.at[b, head, t, pl.ds(s * rows, rows)])
            plgpu.copy_smem_to_gmem(total, sums.at[s, b, head, t])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, smem((rows, rows), out.dtype))

    out, sums = call(
        mlstm_pairs,
        options,
        {"bh": batch * heads, "chunk": time // options.chunk, "pair": tiles * (tiles + 1) // 2},
        [
            jax.ShapeDtypeStruct((batch, heads, time, options.chunk), x.dtype),
            jax.ShapeDtypeStruct((tiles, batch, heads, time), jnp.float32),
        ],
        [
            plgpu.SMEM((rows,), jnp.float32),
            plgpu.SMEM((count, rows), jnp.float32),
            plgpu.SMEM((2, rows), jnp.int32),
            plgpu.Barrier(num_arrivals=count + 2),
        ],
    )(x, y, gates.document, *of_rows, *of_columns)
    written = jnp.arange(time) % options.chunk // rows >= jnp.arange(tiles)[:, None]
    return out, jnp.sum(jnp.where(written[:, None, None], sums, 0), axis=0)


def combine(
    options: Options,
    P: Float[Array, "B H T L"],
    y: Values,
    x: Keys,
    states: Float[Array, "B H N K V"],
    of_state: TokenNumbers,
    *,
    of_all: TokenNumbers | None = None,
    column: tuple[TokenNumbers, Float[Array, "B H N V"]] | None = None,
    dot_with: Values | None = None,
    state_transposed: bool = False,
    pairs_transposed: bool = False,
) -> tuple[Values, TokenNumbers | None]:
    """out_t = of_all_t (sum_s P_ts y_s + of_state_t x_t·state + column_t vector), the last two with
    their chunk's state and vector.

    Transposed states are `B H N V K`; transposed pairs sum over the later tokens, P_st. Also the
    float32 dot products of out, before it is rounded, with the rows of dot_with.
    """
    batch, time, heads, depth = x.shape
    width, rows = y.shape[-1], options.rows
    wide, tiles, per_tile = tile_of(width), options.chunk // rows, rows // DEPTH
    blocks = blocks_of(width // wide)
    column_numbers, vector = column if column else (None, None)
    optional = {
        "of_all": of_all,
        "column": column_numbers,
        "vector": vector,
        "dot_with": dot_with,
    }
    optional = {name: x for name, x in optional.items() if x is not None}
    outputs = ["out", "dots"] if dot_with is not None else ["out"]
    scratch = ["numbers", "vector_smem", "barrier", "dot_barrier", "agreed"]
    names = [*optional, *outputs, *scratch]

    def mlstm_combine(P, y, x, states, of_state, *others):
        refs = dict(zip(names, others, strict=True))
        of_all_in, column_in, vector_in, dot_in, dots = map(
            refs.get, ("of_all", "column", "vector", "dot_with", "dots")
        )
        out = refs["out"]
        numbers, vector_smem, barrier, dot_barrier, agreed = (refs[name] for name in scratch)
        b, head = batch_and_head(heads)
        at, j = lax.axis_index("tile"), wide_tile(blocks)
        chunk, t = at // tiles, at % tiles
        tokens, columns = pl.ds(at * rows, rows), pl.ds(j * wide, wide)

        copies = [(of_state.at[b, head, tokens], numbers.at[0])]
        copies += [(of_all_in.at[b, head, tokens], numbers.at[1])] if of_all_in is not None else []
        copies += (
            [
                (column_in.at[b, head, tokens], numbers.at[1]),
                (vector_in.at[b, head, chunk, columns], vector_smem),
            ]
            if column
            else []
        )
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target, barrier)

        def from_state(acc):
            def step(_, x, state):
                plgpu.wgmma(acc, x, state.transpose((1, 0)) if state_transposed else state)
                plgpu.wgmma_wait(1)

            shape, place = (
                ((wide, DEPTH), lambda d: (j, d))
                if state_transposed
                else ((DEPTH, wide), lambda d: (d, j))
            )
            operands = (
                Operand(x.at[b, :, head], (rows, DEPTH), lambda d: (at, d), blocks > 1),
                Operand(states.at[b, head, chunk], shape, place),
            )
            ring(step, depth // DEPTH, operands, agreed, slots=3)
            return acc[...]

        result = pl.run_scoped(from_state, plgpu.ACC((rows, wide), jnp.float32))
        plgpu.barrier_wait(barrier)
        result = result * for_each_row(numbers.at[0], result.shape)
        if column:
            result = result + for_each_row(numbers.at[1], result.shape) * for_each_column(
                vector_smem, result.shape
            )

        def from_pairs(acc):
            first = t * per_tile if pairs_transposed else 0

            def step(_, P, y):
                plgpu.wgmma(acc, P.transpose((1, 0)) if pairs_transposed else P, y)
                plgpu.wgmma_wait(1)

            begin = chunk * (options.chunk // DEPTH) + first
            shape, place = (
                ((DEPTH, rows), lambda d: (begin + d, t))
                if pairs_transposed
                else ((rows, DEPTH), lambda d: (at, d))
            )
            operands = (
                Operand(P.at[b, head], shape, place, blocks > 1),
                Operand(y.at[b, :, head], (DEPTH, wide), lambda d: (begin + d, j)),
            )
            ring(
                step,
                ((tiles - t) if pairs_transposed else (t + 1)) * per_tile,
                operands,
                agreed,
                slots=3,
            )

        result = accumulate(options, from_pairs, result)
        if of_all_in is not None:
            result = result * for_each_row(numbers.at[1], result.shape)

        def write(tile):
            if dots is not None:
                plgpu.copy_gmem_to_smem(dot_in.at[b, tokens, head, columns], tile, dot_barrier)
                plgpu.barrier_wait(dot_barrier)
                other = plgpu.load(tile, layout=plgpu.Layout.WGMMA).astype(jnp.float32)
                numbers[0] = jnp.sum(result * other, axis=1)
            tile[...] = result.astype(tile.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(tile, out.at[b, tokens, head, columns])
            if dots is not None:
                plgpu.copy_smem_to_gmem(numbers.at[0], dots.at[j, b, head, tokens])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, smem((rows, wide), out.dtype))

    outs = [jax.ShapeDtypeStruct(y.shape, y.dtype)]
    outs += (
        [jax.ShapeDtypeStruct((width // wide, batch, heads, time), jnp.float32)]
        if dot_with is not None
        else []
    )
    results = call(
        mlstm_combine,
        options,
        {"bh": batch * heads, "tile": time // rows, "wide": width // wide // blocks},
        outs,
        [
            plgpu.SMEM((2, rows), jnp.float32),
            plgpu.SMEM((wide,), jnp.float32),
            plgpu.Barrier(num_arrivals=1 + (of_all is not None) + 2 * (column is not None)),
            plgpu.Barrier(),
            plgpu.ClusterBarrier(collective_axes=("block",)),
        ],
        blocks,
    )(P, y, x, states, of_state, *optional.values())
    return results[0], jnp.sum(results[1], axis=0) if dot_with is not None else None
