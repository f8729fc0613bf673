"""The Triton kernels of the mLSTM's backward pass, beside `walk`, which the forward pass has too:
what each computes, its blocks and its grid.

With the numbers of gates.py, d = max(|qn|, floor) + eps, s = 1/sqrt(K), per chunk:

  keys      dS_ts = s D_ts (dh_t·v_s / d_t + dqn_t)
            dq_t  = sum_s dS_ts k_s + s w_t (C dh_t / d_t + n dqn_t)
            dk_s  = sum_t dS_ts q_t + kept_s (dC' v_s + dn')
            <C', dC'> = w_last <C, dC'> + sum_s kept_s k_s·(dC' v_s)
  values    dv_s = sum_t s D_ts (q_t·k_s) dh_t / d_t + kept_s k_s dC'
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.mlstm import pallas_triton_tiles as tiles
from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers
from pallas_kernels.typing import Keys, Values


def key_gradients(
    options: tiles.Options,
    q: Keys,
    k: Keys,
    v: Values,
    dh: Values,
    gates: ChunkGates,
    per_d: TokenNumbers,
    dqn: TokenNumbers,
    C: Float[Array, "B H N K V"],
    dC: Float[Array, "B H N K V"],
    n: Float[Array, "B H N K"],
    dn: Float[Array, "B H N K"],
) -> tuple[Keys, Keys, TokenNumbers, TokenNumbers, Float[Array, "B H N"]]:
    """dq, dk, q·dq, k·dk per token, and <C, dC> + <n, dn> after each chunk; C and n are before it,
    dC and dn after it.
    """
    batch, time, heads, key_dim = q.shape
    size, scale = options.blocks.chunk, options.scale
    value_dim = v.shape[-1]
    at, wide, deep = (
        tiles.ChunkBlocks(heads, size),
        tiles.tile(key_dim, options.blocks.keys),
        tiles.tile(value_dim, options.blocks.deep),
    )
    dot = functools.partial(tiles.dot, tensor_cores=not options.interpret)

    def mlstm_keys(
        q,
        k,
        v,
        dh,
        row,
        col,
        row_low,
        col_low,
        w,
        kept,
        per_d,
        dqn,
        document,
        w_last,
        C,
        dC,
        n,
        dn,
        dq_out,
        dk_out,
        q_dq,
        k_dk,
        overlap,
    ):
        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            dS, from_C, from_dC, both = carry
            vs = pl.ds(i * deep, deep)
            values, outputs, state, d_state = v[:, vs], dh[:, vs], C[:, vs], dC[:, vs]
            dS, from_C = dS + dot(outputs, values, (1, 1)), from_C + dot(outputs, state, (1, 1))
            return (
                dS,
                from_C,
                from_dC + dot(values, d_state, (1, 1)),
                both + state.astype(jnp.float32) * d_state.astype(jnp.float32),
            )

        empty = (
            jnp.zeros(shape, jnp.float32)
            for shape in ((size, size), (size, wide), (size, wide), (wide, deep))
        )
        dS, from_C, from_dC, both = lax.fori_loop(0, value_dim // deep, step, tuple(empty))
        both = jnp.sum(both) + jnp.sum(n[...] * dn[...])
        per, dqn = per_d[:][:, None], dqn[:][:, None]
        dS = (
            (dS * per + dqn) * (scale * tiles.decays(row, col, row_low, col_low, document))
        ).astype(q.dtype)
        dq = dot(dS, k[...]) + scale * w[:][:, None] * (per * from_C + dqn * n[...][None, :])
        dq_out[...], q_dq[...] = (
            dq.astype(q.dtype),
            jnp.sum(q[...].astype(jnp.float32) * dq, axis=1),
        )
        keys, kept_dC = k[...].astype(jnp.float32), kept[:][:, None] * (from_dC + dn[...][None, :])
        overlap[0] = jnp.sum(keys * kept_dC) + w_last[0] * both
        dk = dot(dS, q[...], (0, 0)) + kept_dC
        dk_out[...], k_dk[...] = dk.astype(q.dtype), jnp.sum(keys * dk, axis=1)

    numbers = [
        (x, x is not None and at.numbers() or None)
        for x in (*tiles.decay_arrays(gates), gates.w, gates.kept, per_d, dqn)
    ]
    part, matrix, vector = (
        at.tokens(wide, True),
        at.chunk(wide, value_dim, tiled=0),
        at.chunk(wide, tiled=0),
    )
    ins = [
        (q, part),
        (k, part),
        (v, at.tokens(value_dim)),
        (dh, at.tokens(value_dim)),
        *numbers,
        (gates.document, at.document()),
    ]
    ins += [
        (gates.w_last[..., None], at.chunk(1)),
        (C, matrix),
        (dC, matrix),
        (n, vector),
        (dn, vector),
    ]
    parts = key_dim // wide
    sums = ((batch, heads, parts, time), jnp.float32)
    sums = (
        *sums,
        pl.BlockSpec((None, None, None, size), lambda j, n, g: (g // heads, g % heads, j, n)),
    )
    outs = (
        [(q.shape, q.dtype, part)] * 2
        + [sums] * 2
        + [((batch, heads, time // size, parts), jnp.float32, at.chunk(1, tiled=0))]
    )
    dq, dk, q_dq, k_dk, overlap = tiles.call(
        mlstm_keys, options, (parts, time // size, batch * heads), ins, outs
    )
    return dq, dk, jnp.sum(q_dq, axis=2), jnp.sum(k_dk, axis=2), jnp.sum(overlap, axis=-1)


def value_gradients(
    options: tiles.Options,
    q: Keys,
    k: Keys,
    dh: Values,
    gates: ChunkGates,
    per_d: TokenNumbers,
    dC: Float[Array, "B H N K V"],
) -> Values:
    """dv; dC is after each chunk."""
    batch, time, heads, key_dim = q.shape
    size, scale = options.blocks.chunk, options.scale
    at, wide, deep = (
        tiles.ChunkBlocks(heads, size),
        tiles.tile(dh.shape[-1], options.blocks.wide),
        tiles.tile(key_dim, options.blocks.deep),
    )
    dot = functools.partial(tiles.dot, tensor_cores=not options.interpret)

    def mlstm_values(q, k, dh, row, col, row_low, col_low, kept, per_d, document, dC, dv):
        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            ks = pl.ds(i * deep, deep)
            keys = k[:, ks]
            return carry[0] + dot(q[:, ks], keys, (1, 1)), carry[1] + dot(keys, dC[ks, :])

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide)))
        S, from_dC = lax.fori_loop(0, key_dim // deep, step, tuple(empty))
        S = S * tiles.decays(row, col, row_low, col_low, document) * (scale * per_d[:])[:, None]
        dv[...] = (dot(S.astype(dh.dtype), dh[...], (0, 0)) + kept[:][:, None] * from_dC).astype(
            dv.dtype
        )

    numbers = [
        (x, x is not None and at.numbers() or None)
        for x in (*tiles.decay_arrays(gates), gates.kept, per_d)
    ]
    ins = [(q, at.tokens(key_dim)), (k, at.tokens(key_dim)), (dh, at.tokens(wide, True)), *numbers]
    ins += [(gates.document, at.document()), (dC, at.chunk(key_dim, wide, tiled=1))]
    outs = [(dh.shape, dh.dtype, at.tokens(wide, True))]
    return tiles.call(
        mlstm_values, options, (dh.shape[-1] // wide, time // size, batch * heads), ins, outs
    )[0]
