"""The mLSTM chunk by chunk: the parallel form inside a chunk, the recurrence between chunks, linear
in T.

One scan over the chunks goes forward and one goes back. The forward scan leaves the state before
every chunk for the backward one; all weights are computed again. The gradients are exact. With y =
numerator, d = max(|n·q|, exp(-m)), h = y/d, per chunk:

  dy_t  = dh_t / d_t
  dqn_t = -sign(n·q) (dh_t · h_t) / d_t      for n·q, where |n·q| > exp(-m)
  di_s  = k_s · dk_s                         for log i, because i_s only ever scales k_s
  df_r  = sum over t >= r of (q_t · dq_t - k_t · dk_t)
          + <C, dC> + <n, dn> after the chunk's last token          for log f
  dm_0  = <C_0, dC_0> + <n_0, dn_0>

The stabilisers m are constants: they cancel in h and in the true state C·exp(m). Where nothing is
left of the state before token r, df_r is 0.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.derivatives import with_backward
from pallas_kernels.filling import filled
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.exponents import denominator, floor_of, quotient
from pallas_kernels.mlstm.parallel import TokenSums, decay_weights, token_sums
from pallas_kernels.products import product_dtype
from pallas_kernels.typing import Gates, Keys, MLSTMState, Values

Static = tuple[bool, int, float]  # normalise, chunk length, eps


class _Tokens(NamedTuple):
    """A sequence, its time a multiple of the chunk length L, or (T = L, heads before time) one
    chunk of it.

    document counts the resets since the chunk began.
    """

    q: Keys
    k: Keys
    v: Values
    log_i: Gates
    log_f: Gates
    document: Int[Array, "B T"] | None


def mlstm_chunkwise(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """Cuts the sequence into chunks of chunk_size tokens, the last one filled up with neutral
    tokens, and scans over them.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, chunk_size, eps = options
    time = q.shape[1]
    size = chunk_size or default_chunk_size(time, q.shape[-1], v.shape[-1])
    document = None
    if starts is not None:
        starts = filled(starts, 1, size, False)
        document = jnp.cumsum(starts.reshape(len(q), -1, size), axis=2, dtype=jnp.int32).reshape(
            starts.shape
        )
    neutral = {"q": 0, "k": 0, "v": 0, "log_i": -jnp.inf, "log_f": 0}
    given = {"q": q, "k": k, "v": v, "log_i": log_i, "log_f": log_f}
    tokens = {name: filled(x, 1, size, neutral[name]) for name, x in given.items()}
    h, state = _mlstm((normalise, size, eps), _Tokens(**tokens, document=document), state)
    return h[:, :time], state


def default_chunk_size(time: int, key_dim: int, value_dim: int) -> int:
    """The chunk length measured fastest for a training step on a CPU, evened out so that little of
    the last chunk is filling.

    A chunk costs L·L for its pairs of tokens and K·V for its state: larger states want longer
    chunks.
    """
    size = key_dim * value_dim
    best = 32 if size < 128 * 128 else 64 if size < 512 * 512 else 128
    chunks = -(-time // best)
    return -(-time // chunks)


def _read(tokens: Any, chunk: Int[Array, ""], size: int) -> Any:
    """One chunk of every array, the heads before the time: `B L H *D` -> `B H L *D`.

    Cut out and turned round in one go inside the scan: a layout of chunks made before it costs a
    pass over all inputs and outputs.
    """
    return jax.tree.map(
        lambda x: _swap(lax.dynamic_slice_in_dim(x, chunk * size, size, axis=1)), tokens
    )


def _write(arrays: Any, values: Any, chunk: Int[Array, ""], size: int) -> Any:
    """The arrays with one chunk replaced, cast to their types."""

    def write(array: Array, value: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(
            array, _swap(value).astype(array.dtype), chunk * size, axis=1
        )

    return jax.tree.map(write, arrays, values)


def _swap(x: Array) -> Array:
    return x if x.ndim < 3 else jnp.swapaxes(x, 1, 2)


def _value(static: Static, tokens: _Tokens, state: MLSTMState) -> tuple[Values, MLSTMState]:
    """All chunks, one after the other: (h, state after the last)."""
    return _forward(static, tokens, state)[0]


def _forward(static: Static, tokens: _Tokens, state: MLSTMState) -> tuple[Any, Any]:
    normalise, size, eps = static

    def step(carry: tuple[MLSTMState, Array], chunk: Any) -> Any:
        before, h = carry
        index, sums = chunk
        chunk = _read(tokens, index, size)
        after, h_chunk, qn = _chunk_forward(normalise, eps, before, chunk, sums)
        return (after, _write(h, h_chunk, index, size)), (qn, before)

    sums = _sums(static, tokens)
    chunks = jnp.arange(tokens.q.shape[1] // size), sums
    (after, h), saved = lax.scan(step, (state, jnp.zeros_like(tokens.v)), chunks)
    return (h, after), (tokens, h, saved, after, sums)


def _sums(static: Static, tokens: _Tokens) -> TokenSums:
    """The sums of every chunk's gates, a leading axis for the chunks: the same in both passes."""
    normalise, size, _ = static

    def cut(x: Float[Array, "B T H"]) -> Float[Array, "N B H L"]:
        return jnp.transpose(x.reshape(len(x), -1, size, x.shape[-1]), (1, 0, 3, 2))

    document = None if tokens.document is None else cut(tokens.document[..., None])
    return token_sums(cut(tokens.log_i), cut(tokens.log_f), document, normalise)


def _backward(static: Static, kept: Any, cotangents: Any) -> tuple[_Tokens, MLSTMState]:
    normalise, size, eps = static
    tokens, h, saved, after, sums = kept
    dh, d_after = cotangents

    def step(carry: Any, of_chunk: Any) -> Any:
        (qn, before), sums, index = of_chunk
        d_state, gradients = carry
        h_chunk, dh_chunk = _read((h, dh), index, size)
        chunk = _read(tokens, index, size)
        d_state, d_chunk = _chunk_backward(
            normalise, eps, d_state, chunk, sums, h_chunk, qn, before, dh_chunk
        )
        return (d_state, _write(gradients, d_chunk, index, size)), None

    dC, dn = d_after.C, d_after.n if normalise else jnp.zeros_like(d_after.n)
    inputs = tokens._replace(document=None)
    carry = ((dC, dn, _overlap(after, dC, dn)), jax.tree.map(jnp.zeros_like, inputs))
    chunks = jnp.arange(tokens.q.shape[1] // size)
    ((dC, dn, dm), d_tokens), _ = lax.scan(step, carry, (saved, sums, chunks), reverse=True)
    return d_tokens, MLSTMState(dC, dn, dm if normalise else jnp.zeros_like(dm))


def _push(static: Static, kept: Any, tangents: Any) -> tuple[Values, MLSTMState]:
    tokens, _, (_, before), *_ = kept
    state = jax.tree.map(lambda x: x[0], before)
    return jax.jvp(functools.partial(_value, static), (tokens, state), tuple(tangents))[1]


_mlstm = with_backward(_value, _forward, _backward, _push, name="cell")


def _chunk_forward(
    normalise: bool, eps: float, state: MLSTMState, chunk: _Tokens, sums: TokenSums
) -> tuple[MLSTMState, Array, Array]:
    """One chunk from the state before it: the state after it, the outputs, and n·q for the backward
    pass.
    """
    q, k, v, _, _, document = chunk
    C, n, m_before = state
    dot = functools.partial(_dot, product_dtype(q.dtype, C.dtype), C.dtype)
    weights = decay_weights(sums, document, m_before, normalise)
    # The 1/sqrt(K) of q goes into the weights, where it is not rounded to q's type. It can't go
    # into the keys: the state holds unscaled ones.
    scale = q.shape[-1] ** -0.5
    D, w = scale * weights.D, scale * weights.w
    last, w_last, m = weights.last[..., None], weights.w_last[..., None], weights.m
    S = dot("bhtk,bhsk->bhts", q, k) * D
    h = dot("bhts,bhsv->bhtv", S, v) + w[..., None] * dot("bhtk,bhkv->bhtv", q, C)
    qn = jnp.sum(S, axis=-1) + w * jnp.sum(q * n[..., None, :], axis=-1)
    if normalise:
        h = quotient(h, denominator(qn, m, eps)[..., None])

    kept_k = last * k
    after = MLSTMState(
        w_last * C + dot("bhsk,bhsv->bhkv", kept_k, v),
        weights.w_last * n + jnp.sum(kept_k, axis=-2) if normalise else n,
        weights.m_last[..., 0],
    )
    return after, h, qn


def _chunk_backward(
    normalise: bool,
    eps: float,
    carry: Any,
    chunk: _Tokens,
    sums: TokenSums,
    h: Array,
    qn: Array,
    before: MLSTMState,
    dh: Array,
) -> tuple[Any, _Tokens]:
    """One chunk from the cotangents (dC, dn) of the state after it: those of the state before it
    and of the chunk's inputs.

    The carry's third part is <C, dC> + <n, dn> of the same state. Names as in the module's
    docstring.
    """
    dC, dn, overlap = carry
    q, k, v, _, _, document = chunk
    C, n, m_before = before
    dot = functools.partial(_dot, product_dtype(q.dtype, C.dtype), C.dtype)
    weights = decay_weights(sums, document, m_before, normalise)
    # The 1/sqrt(K) of q goes into the weights, where it is not rounded to q's type. It can't go
    # into the keys: the state holds unscaled ones.
    scale = q.shape[-1] ** -0.5
    D, w = scale * weights.D, scale * weights.w
    last, w_last, m = weights.last[..., None], weights.w_last[..., None], weights.m

    dy = dh.astype(C.dtype)
    if normalise:
        per_d = quotient(jnp.ones_like(qn), denominator(qn, m, eps))
        dqn = jnp.where(
            jnp.abs(qn) > floor_of(m), -jnp.sign(qn) * per_d * jnp.sum(dy * h, axis=-1), 0
        )
        dy = dy * per_d[..., None]
    else:
        dqn = jnp.zeros_like(qn)
    w_dy, w_dqn = w[..., None] * dy, (w * dqn)[..., None]

    S = dot("bhtk,bhsk->bhts", q, k) * D
    dS = (dot("bhtv,bhsv->bhts", dy, v) + dqn[..., None]) * D
    dq = dot("bhts,bhsk->bhtk", dS, k) + dot("bhtv,bhkv->bhtk", w_dy, C) + w_dqn * n[..., None, :]
    dk = dot("bhts,bhtk->bhsk", dS, q) + last * (dot("bhsv,bhkv->bhsk", v, dC) + dn[..., None, :])
    dv = dot("bhts,bhtv->bhsv", S, dy) + last * dot("bhsk,bhkv->bhsv", k, dC)

    d_log_i = jnp.sum(k * dk, axis=-1)
    d_log_f = _sum_from(jnp.sum(q * dq, axis=-1) - d_log_i, overlap, document)
    d_log_f = jnp.where(weights.wiped, 0, d_log_f)

    dC = w_last * dC + dot("bhtk,bhtv->bhkv", q, w_dy)
    dn = weights.w_last * dn + jnp.sum(q * w_dqn, axis=-2)
    return (dC, dn, _overlap(before, dC, dn)), _Tokens(dq, dk, dv, d_log_i, d_log_f, None)


def _sum_from(
    x: Float[Array, "B H L"], after: Float[Array, "B H"], document: Int[Array, "B L"] | None
) -> Float[Array, "B H L"]:
    """Sums x from each token to the end of its document; the chunk's last document goes on to
    `after`.

    The log f of a document's first token has no state to act on: exactly 0.
    """
    if document is None:
        return lax.cumsum(x, axis=2, reverse=True) + after[..., None]
    later = jnp.tri(x.shape[-1], dtype=bool).T[None, None]
    pairs = (document[:, None, :, None] == document[:, None, None, :]) & later
    total = jnp.sum(jnp.where(pairs, x[..., None, :], 0), axis=-1)
    total = total + jnp.where(document[:, None] == document[:, None, -1:], after[..., None], 0)
    starts = jnp.diff(document, axis=-1, prepend=0) > 0
    return jnp.where(starts[:, None], 0, total)


def _overlap(
    state: MLSTMState, dC: Float[Array, "B H K V"], dn: Float[Array, "B H K"]
) -> Float[Array, "B H"]:
    return jnp.sum(state.C * dC, axis=(-2, -1)) + jnp.sum(state.n * dn, axis=-1)


def _dot(
    low: jnp.dtype, high: jnp.dtype, equation: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """A product of matrices in the type of the inputs with sums in the type of the states."""
    return jnp.einsum(
        equation,
        x.astype(low),
        y.astype(low),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=high,
    )
