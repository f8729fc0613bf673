"""The mLSTM one token at a time: the paper's equations, the oracle of every other form, and the
decode step.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.exponents import denominator, quotient
from pallas_kernels.rounding import added_to_pair
from pallas_kernels.typing import MLSTMState, Values

# q, k, v, log i, log f and the start flag of one token
Token = tuple[
    Float[Array, "B H K"],
    Float[Array, "B H K"],
    Float[Array, "B H V"],
    Float[Array, "B H"],
    Float[Array, "B H"],
    Bool[Array, " B"],
]


def mlstm_recurrent(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """Scans mlstm_step over time; gradients by autodiff, which keeps every step's state. chunk_size
    has no meaning here.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, _, eps = options
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
    first = state, jnp.zeros_like(state.m)
    if q.shape[1] == 1:
        (state, _), h = step(first, tuple(x[:, 0] for x in tokens), carries_low=False)
        return h[:, None].astype(v.dtype), state
    (state, low), h = lax.scan(step, first, tuple(jnp.moveaxis(x, 1, 0) for x in tokens))
    return jnp.moveaxis(h, 0, 1).astype(v.dtype), _absorbed(state, low)


def mlstm_step(
    carry: tuple[MLSTMState, Float[Array, "B H"]],
    token: Token,
    *,
    normalise: bool,
    eps: float,
    carries_low: bool = True,
) -> tuple[tuple[MLSTMState, Float[Array, "B H"]], Float[Array, "B H V"]]:
    """One token of arXiv 2405.04517, equations 19-27, stabilised as in appendix A.3.

    The carry is the state and what its m lacks: m is rounded, and after 65,536 roundings it would
    be 3 % off. carries_low=False puts that into C and n instead and hands on 0.

    The output does not depend on the stabiliser m, so m is a constant to the gradient; only a given
    m0 gets one, as a factor of C0.
    """
    (state, low), (q, k, v, log_i, log_f, start) = carry, token
    C, n, m_before = (jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in state)

    low = jnp.where(start[:, None], 0, low)
    f, i, m, new_low = step_gates(m_before, low, log_i, log_f, normalise)
    C = f[..., None, None] * C + i[..., None, None] * k[..., :, None] * v[..., None, :]
    if normalise:
        n = f[..., None] * n + i[..., None] * k
    after = MLSTMState(C, n, m)
    if normalise and not carries_low:
        after, new_low = _absorbed(after, new_low), jnp.zeros_like(new_low)
    numerator = jnp.einsum("bhk,bhkv->bhv", q, after.C, precision=lax.Precision.HIGHEST)
    if not normalise:
        return (after, new_low), numerator
    below = denominator(jnp.sum(after.n * q, axis=-1), m, eps)
    return (after, new_low), quotient(numerator, below[..., None])


class StepGates(NamedTuple):
    """What one token leaves of the state, what it adds of itself, the new m and what that lacks."""

    forget: Float[Array, "B H"]
    write: Float[Array, "B H"]
    m: Float[Array, "B H"]
    low: Float[Array, "B H"]


def step_gates(
    m_before: Float[Array, "B H"],
    low: Float[Array, "B H"],
    log_i: Float[Array, "B H"],
    log_f: Float[Array, "B H"],
    normalise: bool,
) -> StepGates:
    """The weights of one token, after a state with the stabiliser m_before + low."""
    if not normalise:
        return StepGates(jnp.exp(log_f), jnp.exp(log_i), m_before, low)
    forgotten, low = added_to_pair(*map(lax.stop_gradient, (m_before, log_f, low)))
    m = lax.stop_gradient(jnp.maximum(forgotten, log_i))
    new_low = jnp.where(forgotten >= m, low, 0)
    log_forget = (forgotten - m) + (low - new_low)
    forget = jnp.exp(log_forget + _zero(log_f + m_before))
    return StepGates(forget, jnp.exp(log_i - m - new_low), m, new_low)


def _absorbed(state: MLSTMState, low: Float[Array, "B H"]) -> MLSTMState:
    """The state with exp(low) as a factor of C and n.

    low is tiny, so exp(low) would be rounded to one of the few numbers next to 1. C + expm1(low) C
    keeps the digits of the difference and rounds once, in the sum, up as often as down.
    """
    more = jnp.expm1(low)
    return state._replace(
        C=state.C + more[..., None, None] * state.C, n=state.n + more[..., None] * state.n
    )


def _zero(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """0, with the gradient of x."""
    return x - lax.stop_gradient(x)
