"""The mLSTM as one attention-like product over all pairs of tokens: quadratic in T, the paper's
parallel form.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.exponents import Split, denominator, exact_sums, quotient, wiped
from pallas_kernels.rounding import added_to_pair
from pallas_kernels.typing import MLSTMState, Values


def mlstm_parallel(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """Equations 71-86 of arXiv 2405.04517, with the initial state as one more token. chunk_size has
    no meaning here.

    Gradients by autodiff; the stabiliser m is a constant to them, as in recurrent.py.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, _, eps = options
    dtype, out_dtype = state.C.dtype, v.dtype
    q, k, v, log_i, log_f = (jnp.moveaxis(x.astype(dtype), 2, 1) for x in (q, k, v, log_i, log_f))
    q = q * q.shape[-1] ** -0.5
    document = None if starts is None else jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    sums = token_sums(log_i, log_f, None if document is None else document[:, None], normalise)
    weights = decay_weights(sums, document, state.m, normalise)
    D, w, m = weights.D, weights.w, weights.m

    S = _dot("bhtk,bhsk->bhts", q, k) * D
    numerator = _dot("bhts,bhsv->bhtv", S, v) + w[..., None] * _dot("bhtk,bhkv->bhtv", q, state.C)
    last, w_last = weights.last[..., None] * k, weights.w_last[..., 0]
    C = w_last[..., None, None] * state.C + _dot("bhsk,bhsv->bhkv", last, v)
    if not normalise:
        return jnp.moveaxis(numerator, 1, 2).astype(out_dtype), MLSTMState(C, state.n, state.m)

    qn = jnp.sum(S, axis=-1) + w * _dot("bhtk,bhk->bht", q, state.n)
    h = quotient(numerator, denominator(qn, m, eps)[..., None])
    n = w_last[..., None] * state.n + jnp.sum(last, axis=-2)
    return jnp.moveaxis(h, 1, 2).astype(out_dtype), MLSTMState(C, n, weights.m_last[..., 0])


class TokenSums(NamedTuple):
    """What the weights of L tokens take from their gates, whatever came before them.

    b and col as in exponents.py, b restarted in each document; bound is the largest col of a token
    and those before it in its document, None without a normaliser.
    """

    b: Split
    col: Split
    bound: Float[Array, "*B L"] | None


def token_sums(
    log_i: Float[Array, "*B L"],
    log_f: Float[Array, "*B L"],
    document: Int[Array, "*B L"] | None,
    normalise: bool,
) -> TokenSums:
    """The sums of L tokens, the last axis; document counts the resets up to each."""
    pairs = _earlier(log_f)
    if document is None:
        b, col = exact_sums(log_i, log_f)
        bound = col.total
    else:
        pairs = pairs & (document[..., :, None] == document[..., None, :])
        starts = jnp.diff(document, axis=-1, prepend=0) > 0
        b, col = exact_sums(log_i, jnp.where(starts, 0, log_f), document)
        # the state before a document's first token is empty, with m = 0
        bound = jnp.maximum(col.total, jnp.where(starts, log_f - b.total, -jnp.inf))
    if normalise:
        bound = jnp.max(jnp.where(pairs, bound[..., None, :], -jnp.inf), axis=-1)
    return TokenSums(b, col, lax.stop_gradient(bound) if normalise else None)


class Weights(NamedTuple):
    """How much of token s, and of the state before the first token, is in the state of token t.

    D `[t, s]` = exp(log i_s + sum of log f over (s, t] - m_t), w `[t]` = exp(m_before + sum of
    log f up to t - m_t), both 0 across a reset; m is the stabiliser (0 without a normaliser), a
    constant to the gradient; last, w_last and m_last are the last token's D, w and m, with m
    rounded before the others are taken. wiped flags the tokens that leave nothing of the state
    before them.
    """

    D: Float[Array, "B H L L"]
    w: Float[Array, "B H L"]
    m: Float[Array, "B H L"]
    last: Float[Array, "B H L"]
    w_last: Float[Array, "B H 1"]
    m_last: Float[Array, "B H 1"]
    wiped: Bool[Array, "B H L"]


def decay_weights(
    sums: TokenSums,
    document: Int[Array, "B L"] | None,
    m_before: Float[Array, "B H"],
    normalise: bool,
) -> Weights:
    """The weights of L tokens and of the state before them, whose stabiliser is m_before.

    document counts the resets up to each token: 0 goes on with the state before, None says that all
    tokens do.
    """
    b, col, bound = sums
    pairs = _earlier(b.high)
    m_before = (m_before if normalise else jnp.zeros_like(m_before))[..., None]
    before = m_before
    if document is not None:
        pairs = pairs & (document[:, None, :, None] == document[:, None, None, :])
        before = jnp.where(document[:, None] == 0, m_before, -jnp.inf)

    if normalise:
        top = lax.stop_gradient(jnp.maximum(bound, before))
        m = lax.stop_gradient((b.high + top) + b.low)
        end = (x[..., -1:] for x in (top, b.high, b.low))
        m_last, lacking = added_to_pair(*map(lax.stop_gradient, end))
        row = Split(-top, b.low - lax.stop_gradient(b.low))  # the low part is 0, with b's gradient
        left = shifted(top, m_before) - top
    else:
        row, m, left = b, jnp.zeros_like(b.high), b.total - shifted(b.total, 0)
        m_last = lacking = m[..., -1:]

    log_D = (row.high[..., :, None] + col.high[..., None, :]) + (
        row.low[..., :, None] + col.low[..., None, :]
    )
    D = jnp.exp(jnp.where(pairs, log_D, -jnp.inf))
    w, adjusted = jnp.exp((row.high + before) + row.low), jnp.exp(lacking)
    last, w_last = adjusted * D[..., -1, :], adjusted * w[..., -1:]
    return Weights(D, w, m, last, w_last, m_last, wiped(left))


def _earlier(x: Float[Array, "*B L"]) -> Bool[Array, "... L L"]:
    """The pairs `[t, s]` with s <= t, with as many leading axes as x has."""
    size = x.shape[-1]
    return jnp.tri(size, dtype=bool).reshape(*[1] * (x.ndim - 1), size, size)


def shifted(x: Float[Array, "*B L"], first: Float[Array, "*B 1"] | float) -> Float[Array, "*B L"]:
    """Each token's number at the token after it; `first` at the first token."""
    return jnp.concatenate([jnp.broadcast_to(first, x[..., :1].shape), x[..., :-1]], axis=-1)


def _dot(equation: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, x, y, precision=lax.Precision.HIGHEST)
