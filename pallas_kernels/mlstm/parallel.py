"""The mLSTM as one attention-like product over all pairs of tokens: quadratic in T, the paper's
parallel form.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.mlstm.recurrent import quotient
from pallas_kernels.typing import Gates, Keys, MLSTMState, TokenFlags, Values


def mlstm_parallel(
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
    """Equations 71-86 of arXiv 2405.04517, with the initial state as one more token. chunk_size has
    no meaning here.

    Gradients by autodiff; the stabiliser m is a constant to them, as in recurrent.py.
    """
    del chunk_size
    dtype, out_dtype = state.C.dtype, v.dtype
    q, k, v, log_i, log_f = (jnp.moveaxis(x.astype(dtype), 2, 1) for x in (q, k, v, log_i, log_f))
    q = q * q.shape[-1] ** -0.5
    document = None if starts is None else jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    D, w, m = decay_weights(log_i, log_f, document, state.m, normalise)

    S = _dot("bhtk,bhsk->bhts", q, k) * D
    numerator = _dot("bhts,bhsv->bhtv", S, v) + w[..., None] * _dot("bhtk,bhkv->bhtv", q, state.C)
    last, w_last = D[..., -1, :, None] * k, w[..., -1]
    C = w_last[..., None, None] * state.C + _dot("bhsk,bhsv->bhkv", last, v)
    if not normalise:
        return jnp.moveaxis(numerator, 1, 2).astype(out_dtype), MLSTMState(C, state.n, state.m)

    qn = jnp.sum(S, axis=-1) + w * _dot("bhtk,bhk->bht", q, state.n)
    h = quotient(numerator, (jnp.maximum(jnp.abs(qn), jnp.exp(-m)) + eps)[..., None])
    n = w_last[..., None] * state.n + jnp.sum(last, axis=-2)
    return jnp.moveaxis(h, 1, 2).astype(out_dtype), MLSTMState(C, n, m[..., -1])


def decay_weights(
    log_i: Float[Array, "B H L"],
    log_f: Float[Array, "B H L"],
    document: Int[Array, "B L"] | None,
    m_before: Float[Array, "B H"],
    normalise: bool,
) -> tuple[Float[Array, "B H L L"], Float[Array, "B H L"], Float[Array, "B H L"]]:
    """How much of token s, and of the state before the first token, is in the state of token t.

    document counts the resets up to each token: 0 goes on with the state before, None says that all
    tokens do. Returns D `[t, s]` = exp(log i_s + sum of log f over (s, t] - m_t), w `[t]` =
    exp(m_before + sum of log f up to t - m_t), both 0 across a reset, and the stabiliser m (0
    without a normaliser), which is a constant to the gradient.
    """
    pairs = jnp.tri(log_f.shape[-1], dtype=bool)
    if document is None:
        b = jnp.cumsum(log_f, axis=-1)
        log_w = b + m_before[..., None]
    else:
        pairs = pairs & (document[:, None, :, None] == document[:, None, None, :])
        goes_on = document[:, None] == 0
        # from the document's first token on
        b = jnp.sum(jnp.where(pairs, log_f[..., None, :], 0), axis=-1)
        log_w = b + jnp.where(goes_on, m_before[..., None], 0)  # a reset leaves m = 0

    log_D = jnp.where(pairs, b[..., :, None] - b[..., None, :] + log_i[..., None, :], -jnp.inf)
    m = (
        lax.stop_gradient(jnp.maximum(log_w, jnp.max(log_D, axis=-1)))
        if normalise
        else jnp.zeros_like(b)
    )
    w = jnp.exp(log_w - m)
    return jnp.exp(log_D - m[..., None]), w if document is None else jnp.where(goes_on, w, 0), m


def _dot(equation: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(equation, x, y, precision=lax.Precision.HIGHEST)
