"""The mLSTM on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: four kernels, forward and backward.

A walk over the chunks keeps one tile of C in registers as float32 and leaves the state before every chunk, rounded to the type of the
inputs, for the products that read it; all chunks' outputs follow in parallel. The backward pass walks twice, forward to have the states
again (keeping them would cost 2·K·V/L bytes per token) and back with dC, and then takes dq, dk and dv of all chunks in parallel.
With the numbers of gates.py, y = numerator, d = max(|qn|, floor) + eps, s = 1/sqrt(K), per chunk:

  walk      C' = w_last C + sum_t k_t kept_t v_t             dC = w_last dC' + sum_t q_t (s w_t / d_t) dh_t           likewise n, dn
  outputs   h_t = (sum_s s D_ts (q_t·k_s) v_s + s w_t q_t C) / d_t
  keys      dS_ts = s D_ts (dh_t·v_s / d_t + dqn_t)           dq_t = sum_s dS_ts k_s + s w_t (C dh_t / d_t + n dqn_t)
            dk_s = sum_t dS_ts q_t + kept_s (dC' v_s + dn')   <C', dC'> = w_last <C, dC'> + sum_s kept_s k_s·(dC' v_s)
  values    dv_s = sum_t s D_ts (q_t·k_s) dh_t / d_t + kept_s k_s dC'
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import target_device
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm.gates import ChunkGates, TokenNumbers, chunk_gates, gate_gradients, output_gradients
from pallas_kernels.typing import Gates, Keys, MLSTMState, TokenFlags, Values

_TOO_OLD = ("Tesla", "V100", "P100", "T4", "GTX", "TITAN", "Quadro", "RTX 20", "AMD", "Radeon")  # device kinds without sm_80's products

CHUNKS = (16, 32, 64, 128)  # a chunk's L·L weights are in registers


def mlstm_pallas_triton(
    q: Keys,
    k: Keys,
    v: Values,
    log_i: Gates,
    log_f: Gates,
    state: MLSTMState,
    starts: TokenFlags | None,
    *,
    normalise: bool,
    chunk_size: int | None,
    eps: float,
) -> tuple[Values, MLSTMState]:
    """The backend "pallas_triton": bfloat16, float16 and float32 (products in IEEE float32, without tensor cores).

    K and V are filled up with zeros to a power of two up to 64 and to a multiple of 64 beyond; T to a multiple of the chunk.
    Raises NotImplementedError for float64, mixed types, other chunk sizes than 16, 32, 64, 128, and devices before sm_80.
    """
    mode = interpret_mode("gpu")
    kind = target_device()[1]
    if mode is False and any(name in kind for name in _TOO_OLD):
        raise NotImplementedError(f"it needs an NVIDIA GPU with sm_80 or later, and this program is lowered for a {kind}")
    if mode not in (False, True):
        raise NotImplementedError("it is interpreted by interpret=True alone, there is no simulator for Triton kernels")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"q, k, v must be all bfloat16, float16 or float32; they are {q.dtype}, {k.dtype}, {v.dtype}")
    size = chunk_size or default_chunk_size(q.shape[1], q.shape[-1], v.shape[-1])
    if size not in CHUNKS:
        raise NotImplementedError(f"chunk_size must be one of {CHUNKS}; it is {size}")

    time, key_dim, value_dim = q.shape[1], q.shape[-1], v.shape[-1]
    q, k, v = (_fill_time(_fill_last(x), size, 0) for x in (q, k, v))
    log_i, log_f = _fill_time(log_i, size, -jnp.inf), _fill_time(log_f, size, 0)
    starts = None if starts is None else _fill_time(starts, size, False)
    state = MLSTMState(_fill_last(jnp.swapaxes(_fill_last(jnp.swapaxes(state.C, 2, 3)), 2, 3)), _fill_last(state.n), state.m)
    h, state = _mlstm((mode, normalise, size, eps, key_dim**-0.5), q, k, v, log_i, log_f, state, starts)
    return h[:, :time, :, :value_dim], MLSTMState(state.C[:, :, :key_dim, :value_dim], state.n[:, :, :key_dim], state.m)


def default_chunk_size(time: int, key_dim: int, value_dim: int) -> int:
    """Tokens per chunk, a power of two.

    A chunk's state is written and read once: 4·K·V/L bytes per token in bf16, against 4·(K+V) for q, k, v, h. Heads from 128 on take
    L = 128, the longest that fits registers (128/256: 1.0 of 1.5 KB, 512/512: 8.2 of 4.1 KB); narrow ones 64, which halves the
    work within chunks. Short sequences are not filled up beyond the next power of two.
    """
    longest = 128 if key_dim * value_dim >= 128 * 128 else 64
    return min(longest, max(16, pl.next_power_of_2(time)))


def _fill_time(x: Float[Array, "B T *D"], size: int, neutral: Any) -> Float[Array, "B N*L *D"]:
    missing = -x.shape[1] % size
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0) for _ in x.shape[2:])), constant_values=neutral) if missing else x


def _fill_last(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Triton's arrays have sizes that are powers of two: 16, 32, or any number of tiles of 64."""
    size = x.shape[-1]
    missing = (max(16, pl.next_power_of_2(size)) if size < 64 else -(-size // 64) * 64) - size
    return jnp.pad(x, (*((0, 0) for _ in x.shape[1:]), (0, missing))) if missing else x


def _tile(size: int, longest: int) -> int:
    """The longest of 128 and 64 up to `longest` that divides a filled up size; all of it below 64."""
    return 128 if longest == 128 and size % 128 == 0 else min(size, 64)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlstm(
    options: tuple[Any, ...], q: Keys, k: Keys, v: Values, log_i: Gates, log_f: Gates, state: MLSTMState, starts: TokenFlags | None
) -> tuple[Values, MLSTMState]:
    """All sizes filled up; options are (interpret, normalise, L, eps, 1/sqrt(K))."""
    return _forward(options, q, k, v, log_i, log_f, state, starts)[0]


def _forward(options: tuple[Any, ...], q: Keys, k: Keys, v: Values, log_i: Gates, log_f: Gates, state: MLSTMState, starts: Any) -> Any:
    _, normalise, size, eps, scale = options
    gates = chunk_gates(log_i, log_f, state.m, starts, size, normalise=normalise)
    C, n, last_C, last_n = _walk(options, k, v, gates.kept, _if(normalise, gates.kept), gates.w_last, state.C, state.n)
    h, qn = _outputs(options, q, k, v, gates, C, n)
    after = MLSTMState(last_C, last_n if normalise else state.n, gates.m[..., -1])
    return (h, after), (q, k, v, h, qn, gates, state, starts)


def _backward(options: tuple[Any, ...], kept: Any, cotangents: Any) -> Any:
    _, normalise, size, eps, scale = options
    q, k, v, h, qn, gates, state, starts = kept
    dh, after = cotangents
    per_d, dqn = output_gradients(h, dh, qn, gates.floor, eps, normalise=normalise)
    C, n, _, _ = _walk(options, k, v, gates.kept, _if(normalise, gates.kept), gates.w_last, state.C, state.n)
    to_state = scale * gates.w
    d_n = _if(normalise, after.n)
    dC, dn, first_dC, first_dn = _walk(options, q, dh, to_state * per_d, to_state * dqn, gates.w_last, after.C, d_n, reverse=True)
    dq, dk, q_dq, k_dk, overlap = _keys(options, q, k, v, dh, gates, per_d, dqn, C, dC, n, dn)
    dv = _values(options, q, k, dh, gates, per_d, dC)
    d_log_i, d_log_f = gate_gradients(q_dq, k_dk, overlap, starts)
    dm = jnp.sum(state.C * first_dC, axis=(-2, -1)) + jnp.sum(state.n * first_dn, axis=-1)
    return dq, dk, dv, d_log_i, d_log_f, MLSTMState(first_dC, _if(normalise, first_dn), _if(normalise, dm)), None


_mlstm.defvjp(_forward, _backward)


def _if(flag: bool, x: Array) -> Array:
    return x if flag else jnp.zeros_like(x)


def _call(kernel: Any, options: tuple[Any, ...], grid: tuple[int, ...], ins: Any, outs: Any, warps: int) -> tuple[Array, ...]:
    """One kernel: ins are pairs of (array, block), outs triples of (shape, dtype, block)."""
    from jax.experimental.pallas import triton  # jaxlib without a GPU has it too; only this backend pays for the import

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block for _, block in ins],
        out_specs=[block for _, _, block in outs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outs],
        interpret=options[0],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
    )(*[x for x, _ in ins])


def _dot(x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    """A product of two matrices with float32 sums; contract names the axis of each that is summed over."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(x, y, dims, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _decays(row: Any, col: Any, document: Any) -> Float[Array, "L L"]:
    """D_ts of a chunk."""
    size = row.shape[0]
    t, s = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    document = document[:]
    pairs = (s <= t) & (document[:, None] == document[None, :])
    return jnp.exp(jnp.where(pairs, row[:][:, None] + col[:][None, :], -jnp.inf))


class _Blocks:
    """Blocks of the kernels whose grid is (tiles, N, B·H): a chunk, whole or one tile of its last axis."""

    def __init__(self, heads: int, size: int) -> None:
        self.heads, self.size = heads, size

    def tokens(self, width: int, tiled: bool = False) -> pl.BlockSpec:
        """Of `B T H K`."""
        return pl.BlockSpec((None, self.size, None, width), lambda j, n, g: (g // self.heads, n, g % self.heads, j if tiled else 0))

    def numbers(self) -> pl.BlockSpec:
        """Of `B H T`."""
        return pl.BlockSpec((None, None, self.size), lambda j, n, g: (g // self.heads, g % self.heads, n))

    def document(self) -> pl.BlockSpec:
        """Of `B T`."""
        return pl.BlockSpec((None, self.size), lambda j, n, g: (g // self.heads, n))

    def chunk(self, *shape: int, tiled: int | None = None) -> pl.BlockSpec:
        """Of `B H N ...`; tiled is the axis of shape that the tiles run along."""
        index = lambda j: [j if axis == tiled else 0 for axis in range(len(shape))]  # noqa: E731
        return pl.BlockSpec((None, None, None, *shape), lambda j, n, g: (g // self.heads, g % self.heads, n, *index(j)))


def _walk(
    options: tuple[Any, ...],
    x: Keys,
    y: Values,
    a: TokenNumbers,
    b: TokenNumbers,
    w_last: Float[Array, "B H N"],
    X: Float[Array, "B H K V"],
    z: Float[Array, "B H K"],
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "B H N K V"], Float[Array, "B H N K"], Float[Array, "B H K V"], Float[Array, "B H K"]]:
    """X <- w_last X + sum of a_t x_t y_t and z <- w_last z + sum of b_t x_t, chunk by chunk: X and z before each chunk, and the last."""
    batch, time, heads, key_dim = x.shape
    value_dim, size = y.shape[-1], options[2]
    chunks, wide, tall = time // size, _tile(value_dim, 128), _tile(key_dim, 128)

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
            return w * X + _dot((xs * a[at][:, None]).astype(y.dtype), y[at, :], (0, 0)), z

        X, z = lax.fori_loop(0, chunks, step, (X[...], z[...]))
        X_last[...] = X
        pl.when(first)(lambda: z_last.__setitem__(..., z))

    def tokens(width: int, axis: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, time, None, width), lambda *at: (at[2] // heads, 0, at[2] % heads, at[axis]))

    def per_head(*block: int, axes: tuple[int | None, ...]) -> pl.BlockSpec:
        place = lambda *at: (at[2] // heads, at[2] % heads, *(0 if axis is None else at[axis] for axis in axes))  # noqa: E731
        return pl.BlockSpec((None, None, *block), place)

    numbers = per_head(time, axes=(None,))
    matrix, vector = per_head(tall, wide, axes=(0, 1)), per_head(tall, axes=(0,))
    ins = [(x, tokens(tall, 0)), (y, tokens(wide, 1)), (a, numbers), (b, numbers), (w_last, per_head(chunks, axes=(None,)))]
    outs = [
        ((batch, heads, chunks, key_dim, value_dim), y.dtype, per_head(chunks, tall, wide, axes=(None, 0, 1))),
        ((batch, heads, chunks, key_dim), jnp.float32, per_head(chunks, tall, axes=(None, 0))),
        (X.shape, jnp.float32, matrix),
        (z.shape, jnp.float32, vector),
    ]
    grid = (key_dim // tall, value_dim // wide, batch * heads)
    return _call(mlstm_walk, options, grid, [*ins, (X, matrix), (z, vector)], outs, 8 if tall * wide > 64 * 64 else 4)


def _outputs(
    options: tuple[Any, ...],
    q: Keys,
    k: Keys,
    v: Values,
    gates: ChunkGates,
    C: Float[Array, "B H N K V"],
    n: Float[Array, "B H N K"],
) -> tuple[Values, TokenNumbers]:
    """h, and qn for the backward pass, from the state before each chunk."""
    batch, time, heads, key_dim = q.shape
    _, normalise, size, eps, scale = options
    wide, deep, at = _tile(v.shape[-1], 128), _tile(key_dim, 64), _Blocks(heads, size)

    def mlstm_outputs(q, k, v, row, col, w, floor, document, C, n, h, qn_out):
        first = pl.program_id(0) == 0

        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            S, from_C, from_n = carry
            ks = pl.ds(i * deep, deep)
            qs = q[:, ks]
            S, from_C = S + _dot(qs, k[:, ks], (1, 1)), from_C + _dot(qs, C[ks, :])
            return S, from_C, from_n + jnp.sum(qs.astype(jnp.float32) * n[ks][None, :], axis=1) if normalise else from_n

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide), (size,)))
        S, from_C, from_n = lax.fori_loop(0, key_dim // deep, step, tuple(empty))
        S, w = S * (scale * _decays(row, col, document)), scale * w[:]
        y = _dot(S.astype(v.dtype), v[...]) + w[:, None] * from_C
        qn = jnp.sum(S, axis=1) + w * from_n
        if normalise:
            y = y / (jnp.maximum(jnp.abs(qn), floor[:]) + eps)[:, None]
        h[...] = y.astype(h.dtype)
        pl.when(first)(lambda: qn_out.__setitem__(..., qn))

    numbers = [(x, at.numbers()) for x in (gates.row, gates.col, gates.w, gates.floor)]
    states = [(C, at.chunk(key_dim, wide, tiled=1)), (n, at.chunk(key_dim))]
    ins = [(q, at.tokens(key_dim)), (k, at.tokens(key_dim)), (v, at.tokens(wide, True)), *numbers, (gates.document, at.document())]
    outs = [(v.shape, v.dtype, at.tokens(wide, True)), (gates.row.shape, jnp.float32, at.numbers())]
    grid = (v.shape[-1] // wide, time // size, batch * heads)
    return _call(mlstm_outputs, options, grid, ins + states, outs, 8 if size > 64 else 4)


def _keys(
    options: tuple[Any, ...],
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
    """dq, dk, q·dq, k·dk per token, and <C, dC> + <n, dn> after each chunk; C and n are before it, dC and dn after it."""
    batch, time, heads, key_dim = q.shape
    _, _, size, _, scale = options
    value_dim = v.shape[-1]
    wide, deep, at = _tile(key_dim, 64), _tile(value_dim, 64), _Blocks(heads, size)

    def mlstm_keys(q, k, v, dh, row, col, w, kept, per_d, dqn, document, w_last, C, dC, n, dn, dq_out, dk_out, q_dq, k_dk, overlap):
        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            dS, from_C, from_dC, both = carry
            vs = pl.ds(i * deep, deep)
            values, outputs, state, d_state = v[:, vs], dh[:, vs], C[:, vs], dC[:, vs]
            dS, from_C = dS + _dot(outputs, values, (1, 1)), from_C + _dot(outputs, state, (1, 1))
            return dS, from_C, from_dC + _dot(values, d_state, (1, 1)), both + state.astype(jnp.float32) * d_state.astype(jnp.float32)

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide), (size, wide), (wide, deep)))
        dS, from_C, from_dC, both = lax.fori_loop(0, value_dim // deep, step, tuple(empty))
        per, dqn, w = per_d[:][:, None], dqn[:][:, None], scale * w[:][:, None]
        dS = ((dS * per + dqn) * (scale * _decays(row, col, document))).astype(q.dtype)
        qs, ks, kept_dC = q[...], k[...], kept[:][:, None] * (from_dC + dn[...][None, :])
        dq = _dot(dS, ks) + w * (per * from_C + dqn * n[...][None, :])
        dk = _dot(dS, qs, (0, 0)) + kept_dC
        qs, ks = qs.astype(jnp.float32), ks.astype(jnp.float32)
        dq_out[...], dk_out[...] = dq.astype(q.dtype), dk.astype(q.dtype)
        q_dq[...], k_dk[...] = jnp.sum(qs * dq, axis=1), jnp.sum(ks * dk, axis=1)
        overlap[0] = jnp.sum(ks * kept_dC) + w_last[0] * (jnp.sum(both) + jnp.sum(n[...] * dn[...]))

    numbers = [(x, at.numbers()) for x in (gates.row, gates.col, gates.w, gates.kept, per_d, dqn)]
    part, matrix, vector = at.tokens(wide, True), at.chunk(wide, value_dim, tiled=0), at.chunk(wide, tiled=0)
    ins = [(q, part), (k, part), (v, at.tokens(value_dim)), (dh, at.tokens(value_dim)), *numbers, (gates.document, at.document())]
    ins += [(gates.w_last[..., None], at.chunk(1)), (C, matrix), (dC, matrix), (n, vector), (dn, vector)]
    tiles = key_dim // wide
    sums = ((batch, heads, tiles, time), jnp.float32)
    sums = (*sums, pl.BlockSpec((None, None, None, size), lambda j, n, g: (g // heads, g % heads, j, n)))
    outs = [(q.shape, q.dtype, part)] * 2 + [sums] * 2 + [((batch, heads, time // size, tiles), jnp.float32, at.chunk(1, tiled=0))]
    dq, dk, q_dq, k_dk, overlap = _call(mlstm_keys, options, (tiles, time // size, batch * heads), ins, outs, 8 if size > 64 else 4)
    return dq, dk, jnp.sum(q_dq, axis=2), jnp.sum(k_dk, axis=2), jnp.sum(overlap, axis=-1)


def _values(
    options: tuple[Any, ...], q: Keys, k: Keys, dh: Values, gates: ChunkGates, per_d: TokenNumbers, dC: Float[Array, "B H N K V"]
) -> Values:
    """dv; dC is after each chunk."""
    batch, time, heads, key_dim = q.shape
    _, _, size, _, scale = options
    wide, deep, at = _tile(dh.shape[-1], 128), _tile(key_dim, 64), _Blocks(heads, size)

    def mlstm_values(q, k, dh, row, col, kept, per_d, document, dC, dv):
        def step(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
            ks = pl.ds(i * deep, deep)
            keys = k[:, ks]
            return carry[0] + _dot(q[:, ks], keys, (1, 1)), carry[1] + _dot(keys, dC[ks, :])

        empty = (jnp.zeros(shape, jnp.float32) for shape in ((size, size), (size, wide)))
        S, from_dC = lax.fori_loop(0, key_dim // deep, step, tuple(empty))
        S = S * _decays(row, col, document) * (scale * per_d[:])[:, None]
        dv[...] = (_dot(S.astype(dh.dtype), dh[...], (0, 0)) + kept[:][:, None] * from_dC).astype(dv.dtype)

    numbers = [(x, at.numbers()) for x in (gates.row, gates.col, gates.kept, per_d)]
    ins = [(q, at.tokens(key_dim)), (k, at.tokens(key_dim)), (dh, at.tokens(wide, True)), *numbers]
    ins += [(gates.document, at.document()), (dC, at.chunk(key_dim, wide, tiled=1))]
    outs = [(dh.shape, dh.dtype, at.tokens(wide, True))]
    return _call(mlstm_values, options, (dh.shape[-1] // wide, time // size, batch * heads), ins, outs, 8 if size > 64 else 4)[0]
