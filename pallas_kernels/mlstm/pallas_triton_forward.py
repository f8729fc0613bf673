"""The Triton kernels of the mLSTM's forward pass: what each computes, its blocks and its grid.

With the numbers of gates.py, y = numerator, d = max(|qn|, floor) + eps, s = 1/sqrt(K), per chunk:

  walk      C'    = w_last C + sum_t k_t kept_t v_t
            dC    = w_last dC' + sum_t q_t (s w_t / d_t) dh_t       likewise n, dn
  outputs   h_t   = (sum_s s D_ts (q_t·k_s) v_s + s w_t q_t C) / d_t

The backward pass walks too, so `walk` serves both.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.mlstm import pallas_triton_tiles as tiles
from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers
from pallas_kernels.typing import Keys, Values


def walk(
    options: tiles.Options,
    x: Keys,
    y: Values,
    a: TokenNumbers,
    b: TokenNumbers,
    w_last: Float[Array, "B H N"],
    X: Float[Array, "B H K V"],
    z: Float[Array, "B H K"],
    *,
    reverse: bool = False,
) -> tuple[
    Float[Array, "B H N K V"],
    Float[Array, "B H N K"],
    Float[Array, "B H K V"],
    Float[Array, "B H K"],
]:
    """X <- w_last X + sum of a_t x_t y_t and z <- w_last z + sum of b_t x_t, chunk by chunk: X and
    z before each chunk, and the last.
    """
    batch, time, heads, key_dim = x.shape
    value_dim, blocks = y.shape[-1], options.blocks
    size = blocks.chunk
    chunks, wide, tall = (
        time // size,
        tiles.tile(value_dim, blocks.wide),
        tiles.tile(key_dim, blocks.tall),
    )
    dot = functools.partial(tiles.dot, tensor_cores=not options.interpret)

    def mlstm_walk(x, y, a, b, w_last, X, z, X_out, z_out, X_last, z_last):
        first = pl.program_id(1) == 0

        def step(i: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
            X, z = carry
            n = chunks - 1 - i if reverse else i
            X_out[n] = X.astype(X_out.dtype)
            pl.when(first)(lambda: z_out.__setitem__(n, z))
            at = pl.ds(n * size, size)
            xs, w = x[at, :].astype(jnp.float32), w_last[n]
            z = w * z + jnp.sum(xs * b[at][:, None], axis=0)
            return w * X + dot((xs * a[at][:, None]).astype(y.dtype), y[at, :], (0, 0)), z

        X, z = lax.fori_loop(0, chunks, step, (X[...], z[...]))
        X_last[...] = X
        pl.when(first)(lambda: z_last.__setitem__(..., z))

    def tokens(width: int, axis: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, time, None, width), lambda *at: (at[2] // heads, 0, at[2] % heads, at[axis])
        )

    def per_head(*block: int, axes: tuple[int | None, ...]) -> pl.BlockSpec:
        def place(*at):
            return (
                at[2] // heads,
                at[2] % heads,
                *(0 if axis is None else at[axis] for axis in axes),
            )

        return pl.BlockSpec((None, None, *block), place)

    numbers = per_head(time, axes=(None,))
    matrix, vector = per_head(tall, wide, axes=(0, 1)), per_head(tall, axes=(0,))
    ins = [
        (x, tokens(tall, 0)),
        (y, tokens(wide, 1)),
        (a, numbers),
        (b, numbers),
        (w_last, per_head(chunks, axes=(None,))),
    ]
    outs = [
        (
            (batch, heads, chunks, key_dim, value_dim),
            y.dtype,
            per_head(chunks, tall, wide, axes=(None, 0, 1)),
        ),
        ((batch, heads, chunks, key_dim), jnp.float32, per_head(chunks, tall, axes=(None, 0))),
        (X.shape, jnp.float32, matrix),
        (z.shape, jnp.float32, vector),
    ]
    grid = (key_dim // tall, value_dim // wide, batch * heads)
    return tiles.call(mlstm_walk, options, grid, [*ins, (X, matrix), (z, vector)], outs)


def outputs(
    options: tiles.Options,
    q: Keys,
    k: Keys,
    v: Values,
    gates: ChunkGates,
    C: Float[Array, "B H N K V"],
    n: Float[Array, "B H N K"],
) -> tuple[Values, TokenNumbers]:
    """h, and qn for the backward pass, from the state before each chunk."""
    batch, time, heads, key_dim = q.shape
    _, normalise, eps, scale, (size, *_) = options
    at, wide, deep = (
        tiles.ChunkBlocks(heads, size),
        tiles.tile(v.shape[-1], options.blocks.wide),
        tiles.tile(key_dim, options.blocks.deep),
    )
    dot = functools.partial(tiles.dot, tensor_cores=not options.interpret)

    def mlstm_outputs(q, k, v, row, col, row_low, col_low, w, floor, document, C, n, h, qn_out):
        first = pl.program_id(0) == 0

        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            S, from_C, from_n = carry
            ks = pl.ds(i * deep, deep)
            qs = q[:, ks]
            S, from_C = S + dot(qs, k[:, ks], (1, 1)), from_C + dot(qs, C[ks, :])
            return (
                S,
                from_C,
                from_n + jnp.sum(qs.astype(jnp.float32) * n[ks][None, :], axis=1)
                if normalise
                else from_n,
            )

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide), (size,)))
        S, from_C, from_n = lax.fori_loop(0, key_dim // deep, step, tuple(empty))
        S, w = S * (scale * tiles.decays(row, col, row_low, col_low, document)), scale * w[:]
        y = dot(S.astype(v.dtype), v[...]) + w[:, None] * from_C
        qn = jnp.sum(S, axis=1) + w * from_n
        if normalise:
            y = y / (jnp.maximum(jnp.abs(qn), floor[:]) + eps)[:, None]
        h[...] = y.astype(h.dtype)
        pl.when(first)(lambda: qn_out.__setitem__(..., qn))

    numbers = [
        (x, x is not None and at.numbers() or None)
        for x in (*tiles.decay_arrays(gates), gates.w, gates.floor)
    ]
    states = [(C, at.chunk(key_dim, wide, tiled=1)), (n, at.chunk(key_dim))]
    ins = [
        (q, at.tokens(key_dim)),
        (k, at.tokens(key_dim)),
        (v, at.tokens(wide, True)),
        *numbers,
        (gates.document, at.document()),
    ]
    outs = [(v.shape, v.dtype, at.tokens(wide, True)), (gates.row.shape, jnp.float32, at.numbers())]
    grid = (v.shape[-1] // wide, time // size, batch * heads)
    return tiles.call(mlstm_outputs, options, grid, ins + states, outs)
