"""Linear attention one token at a time: the definition, the oracle of the other form, and the
decode step.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels.linear_attention.call import Call

# q, k, v, log decay and the start flag of one token
Token = tuple[
    Float[Array, "B H K"],
    Float[Array, "B H K"],
    Float[Array, "B H V"],
    Float[Array, "B H P"],
    Bool[Array, " B"],
]


def linear_attention_recurrent(
    call: Call,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Scans `step` over time; gradients by autodiff, which keeps every step's state."""
    dtype = call.S.dtype
    starts = call.starts
    if starts is None:
        starts = jnp.zeros(call.q.shape[:2], bool)
    tokens = (*(x.astype(dtype) for x in call[:3]), call.log_decay, starts)
    one = functools.partial(step, bonus=call.bonus)
    if call.q.shape[1] == 1:
        S, o = one(call.S, tuple(x[:, 0] for x in tokens))
        return o[:, None], S
    S, o = lax.scan(one, call.S, tuple(jnp.moveaxis(x, 1, 0) for x in tokens))
    return jnp.moveaxis(o, 0, 1), S


def step(
    S: Float[Array, "B H K V"], token: Token, *, bonus: Float[Array, "H K"] | None
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H V"]]:
    """S_t = diag(a_t) S_{t-1} + k_t^T v_t, and o_t = q_t S_t, or with a bonus u
    o_t = q_t (S_{t-1} + diag(u) k_t^T v_t).
    """
    q, k, v, log_decay, start = token
    S = jnp.where(start[:, None, None, None], 0, S)
    written = k[..., :, None] * v[..., None, :]
    after = jnp.exp(log_decay)[..., None] * S + written
    read = after if bonus is None else S + bonus[None, ..., None] * written
    return after, jnp.einsum("bhk,bhkv->bhv", q, read, precision=lax.Precision.HIGHEST)
