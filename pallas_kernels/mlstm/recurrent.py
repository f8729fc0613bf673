"""The mLSTM one token at a time: the paper's equations, the oracle of every other form, and the
decode step.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels.typing import Gates, Keys, MLSTMState, TokenFlags, Values

# q, k, v, log i, log f and the start flag of one token
Token = tuple[
    Float[Array, "B H K"],
    Float[Array, "B H K"],
    Float[Array, "B H V"],
    Float[Array, "B H"],
    Float[Array, "B H"],
    Bool[Array, " B"],
]


def mlstm_recurrent(
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
    """Scans mlstm_step over time; gradients by autodiff, which keeps every step's state. chunk_size
    has no meaning here.
    """
    del chunk_size
    dtype = state.C.dtype
    if starts is None:
        starts = jnp.zeros(q.shape[:2], bool)
    tokens = (
        q.astype(dtype) * q.shape[-1] ** -0.5,
        k.astype(dtype),
        v.astype(dtype),
        log_i,
        log_f,
        starts,
    )
    step = functools.partial(mlstm_step, normalise=normalise, eps=eps)
    if q.shape[1] == 1:
        state, h = step(state, tuple(x[:, 0] for x in tokens))
        return h[:, None].astype(v.dtype), state
    state, h = lax.scan(step, state, tuple(jnp.moveaxis(x, 1, 0) for x in tokens))
    return jnp.moveaxis(h, 0, 1).astype(v.dtype), state


def mlstm_step(
    state: MLSTMState,
    token: Token,
    *,
    normalise: bool,
    eps: float,
) -> tuple[MLSTMState, Float[Array, "B H V"]]:
    """One token of arXiv 2405.04517, equations 19-27, stabilised as in appendix A.3.

    The output does not depend on the stabiliser m, so m is a constant to the gradient; only a given
    m0 gets one, as a factor of C0.
    """
    q, k, v, log_i, log_f, start = token
    C, n, m_before = (jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in state)

    m = lax.stop_gradient(jnp.maximum(log_f + m_before, log_i)) if normalise else m_before
    f = jnp.exp(log_f + m_before - m)
    i = jnp.exp(log_i - m)

    C = f[..., None, None] * C + i[..., None, None] * k[..., :, None] * v[..., None, :]
    numerator = jnp.einsum("bhk,bhkv->bhv", q, C, precision=lax.Precision.HIGHEST)
    if not normalise:
        return MLSTMState(C, n, m), numerator

    n = f[..., None] * n + i[..., None] * k
    denominator = jnp.maximum(jnp.abs(jnp.sum(n * q, axis=-1)), jnp.exp(-m)) + eps
    return MLSTMState(C, n, m), quotient(numerator, denominator[..., None])


def quotient(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / y with a gradient that does not square y: y may be exp(-80), whose square is 0 in
    float32.
    """
    constant = lax.stop_gradient(y)
    return x / constant * (2 - y / constant)
