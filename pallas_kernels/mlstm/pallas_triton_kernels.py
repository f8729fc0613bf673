"""The four Triton kernels of the mLSTM: what each computes, its blocks and its grid.

With the numbers of gates.py, y = numerator, d = max(|qn|, floor) + eps, s = 1/sqrt(K), per chunk:

  walk      C'    = w_last C + sum_t k_t kept_t v_t
            dC    = w_last dC' + sum_t q_t (s w_t / d_t) dh_t       likewise n, dn
  outputs   h_t   = (sum_s s D_ts (q_t·k_s) v_s + s w_t q_t C) / d_t
  keys      dS_ts = s D_ts (dh_t·v_s / d_t + dqn_t)
            dq_t  = sum_s dS_ts k_s + s w_t (C dh_t / d_t + n dqn_t)
            dk_s  = sum_t dS_ts q_t + kept_s (dC' v_s + dn')
            <C', dC'> = w_last <C, dC'> + sum_s kept_s k_s·(dC' v_s)
  values    dv_s = sum_t s D_ts (q_t·k_s) dh_t / d_t + kept_s k_s dC'
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers
from pallas_kernels.typing import Keys, Values


class Blocks(NamedTuple):
    """Sizes of the kernels: tokens per chunk, and the longest tiles, each a power of two. A tile is
    halved until it divides its axis.
    """

    chunk: int
    tall: int  # rows of C (K) per program of the walk
    wide: int  # columns (V) per program of the walk, outputs and values
    keys: int  # columns of dq and dk (K) per program
    deep: int  # of the axis that is summed over, per step
    warps: int


class Options(NamedTuple):
    """What a call is specialised on; interpret as pl.pallas_call takes it, scale 1/sqrt(K)."""

    interpret: bool
    normalise: bool
    eps: float
    scale: float
    blocks: Blocks


def _tile(size: int, longest: int) -> int:
    """The longest power of two up to `longest` that divides a filled up size."""
    return longest if size % longest == 0 else _tile(size, longest // 2)


def _call(
    kernel: Any, options: Options, grid: tuple[int, ...], ins: Any, outs: Any
) -> tuple[Array, ...]:
    """One kernel: ins are pairs of (array, block), outs triples of (shape, dtype, block)."""
    # jaxlib without a GPU has it too; only this backend pays for the import
    from jax.experimental.pallas import triton

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block for _, block in ins],
        out_specs=[block for _, _, block in outs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outs],
        interpret=options.interpret,
        compiler_params=triton.CompilerParams(num_warps=options.blocks.warps, num_stages=2),
    )(*[x for x, _ in ins])


def _dot(
    x: Array, y: Array, contract: tuple[int, int] = (1, 0), *, tensor_cores: bool = True
) -> Array:
    """A product of two matrices with float32 sums; contract names the axis of each that is summed
    over.

    Two float32 matrices are multiplied as three TF32 products of their upper and lower halves, off
    by about 2^-21; on a CPU exactly.
    """
    split = x.dtype == jnp.float32 and tensor_cores
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if split else lax.Precision.HIGHEST
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def _decays(row: Any, col: Any, row_low: Any, col_low: Any, document: Any) -> Float[Array, "L L"]:
    """D_ts of a chunk."""
    size = row.shape[0]
    t, s = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    document = document[:]
    pairs = (s <= t) & (document[:, None] == document[None, :])
    low = col_low[:][None, :]
    if row_low is not None:
        low = row_low[:][:, None] + low
    return jnp.exp(jnp.where(pairs, (row[:][:, None] + col[:][None, :]) + low, -jnp.inf))


def decays_of(gates: ChunkGates) -> tuple[TokenNumbers | None, ...]:
    """What `_decays` takes."""
    return gates.row, gates.col, gates.row_low, gates.col_low


class _Blocks:
    """Blocks of the kernels whose grid is (tiles, N, B·H): a chunk, whole or one tile of its last
    axis.
    """

    def __init__(self, heads: int, size: int) -> None:
        self.heads, self.size = heads, size

    def tokens(self, width: int, tiled: bool = False) -> pl.BlockSpec:
        """Of `B T H K`."""
        return pl.BlockSpec(
            (None, self.size, None, width),
            lambda j, n, g: (g // self.heads, n, g % self.heads, j if tiled else 0),
        )

    def numbers(self) -> pl.BlockSpec:
        """Of `B H T`."""
        return pl.BlockSpec(
            (None, None, self.size), lambda j, n, g: (g // self.heads, g % self.heads, n)
        )

    def document(self) -> pl.BlockSpec:
        """Of `B T`."""
        return pl.BlockSpec((None, self.size), lambda j, n, g: (g // self.heads, n))

    def chunk(self, *shape: int, tiled: int | None = None) -> pl.BlockSpec:
        """Of `B H N ...`; tiled is the axis of shape that the tiles run along."""

        def place(j, n, g):
            return (
                g // self.heads,
                g % self.heads,
                n,
                *(j if axis == tiled else 0 for axis in range(len(shape))),
            )

        return pl.BlockSpec((None, None, None, *shape), place)


def walk(
    options: Options,
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
    chunks, wide, tall = time // size, _tile(value_dim, blocks.wide), _tile(key_dim, blocks.tall)
    dot = functools.partial(_dot, tensor_cores=not options.interpret)

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
    return _call(mlstm_walk, options, grid, [*ins, (X, matrix), (z, vector)], outs)


def outputs(
    options: Options,
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
        _Blocks(heads, size),
        _tile(v.shape[-1], options.blocks.wide),
        _tile(key_dim, options.blocks.deep),
    )
    dot = functools.partial(_dot, tensor_cores=not options.interpret)

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
        S, w = S * (scale * _decays(row, col, row_low, col_low, document)), scale * w[:]
        y = dot(S.astype(v.dtype), v[...]) + w[:, None] * from_C
        qn = jnp.sum(S, axis=1) + w * from_n
        if normalise:
            y = y / (jnp.maximum(jnp.abs(qn), floor[:]) + eps)[:, None]
        h[...] = y.astype(h.dtype)
        pl.when(first)(lambda: qn_out.__setitem__(..., qn))

    numbers = [
        (x, x is not None and at.numbers() or None)
        for x in (*decays_of(gates), gates.w, gates.floor)
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
    return _call(mlstm_outputs, options, grid, ins + states, outs)


def keys(
    options: Options,
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
        _Blocks(heads, size),
        _tile(key_dim, options.blocks.keys),
        _tile(value_dim, options.blocks.deep),
    )
    dot = functools.partial(_dot, tensor_cores=not options.interpret)

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
        dS = ((dS * per + dqn) * (scale * _decays(row, col, row_low, col_low, document))).astype(
            q.dtype
        )
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
        for x in (*decays_of(gates), gates.w, gates.kept, per_d, dqn)
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
    tiles = key_dim // wide
    sums = ((batch, heads, tiles, time), jnp.float32)
    sums = (
        *sums,
        pl.BlockSpec((None, None, None, size), lambda j, n, g: (g // heads, g % heads, j, n)),
    )
    outs = (
        [(q.shape, q.dtype, part)] * 2
        + [sums] * 2
        + [((batch, heads, time // size, tiles), jnp.float32, at.chunk(1, tiled=0))]
    )
    dq, dk, q_dq, k_dk, overlap = _call(
        mlstm_keys, options, (tiles, time // size, batch * heads), ins, outs
    )
    return dq, dk, jnp.sum(q_dq, axis=2), jnp.sum(k_dk, axis=2), jnp.sum(overlap, axis=-1)


def values(
    options: Options,
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
        _Blocks(heads, size),
        _tile(dh.shape[-1], options.blocks.wide),
        _tile(key_dim, options.blocks.deep),
    )
    dot = functools.partial(_dot, tensor_cores=not options.interpret)

    def mlstm_values(q, k, dh, row, col, row_low, col_low, kept, per_d, document, dC, dv):
        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            ks = pl.ds(i * deep, deep)
            keys = k[:, ks]
            return carry[0] + dot(q[:, ks], keys, (1, 1)), carry[1] + dot(keys, dC[ks, :])

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide)))
        S, from_dC = lax.fori_loop(0, key_dim // deep, step, tuple(empty))
        S = S * _decays(row, col, row_low, col_low, document) * (scale * per_d[:])[:, None]
        dv[...] = (dot(S.astype(dh.dtype), dh[...], (0, 0)) + kept[:][:, None] * from_dC).astype(
            dv.dtype
        )

    numbers = [
        (x, x is not None and at.numbers() or None) for x in (*decays_of(gates), gates.kept, per_d)
    ]
    ins = [(q, at.tokens(key_dim)), (k, at.tokens(key_dim)), (dh, at.tokens(wide, True)), *numbers]
    ins += [(gates.document, at.document()), (dC, at.chunk(key_dim, wide, tiled=1))]
    outs = [(dh.shape, dh.dtype, at.tokens(wide, True))]
    return _call(
        mlstm_values, options, (dh.shape[-1] // wide, time // size, batch * heads), ins, outs
    )[0]
