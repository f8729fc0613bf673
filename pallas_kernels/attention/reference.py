"""Attention with all scores in memory at once: T·S numbers per head. The oracle, the decode step,
and the form for few tokens.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.attention.call import Call, visible
from pallas_kernels.products import product


def attention_reference(call: Call) -> Float[Array, "B T H V"]:
    """softmax(q·k · scale) v over the visible keys; 0 where none is visible. Gradients by autodiff.

    The largest score of a query is a constant to the gradient: it cancels in the quotient.
    """
    batch, time, heads, key_dim = call.q.shape
    keys, groups = call.k.shape[1:3]
    low = jnp.result_type(call.q, call.k, call.v)
    q = call.q.reshape(batch, time, groups, heads // groups, key_dim)

    scores = call.scale * product("btgrk,bsgk->bgrts", q, call.k, low, call.dtype)
    seen = visible(
        jnp.arange(keys - time, keys), jnp.arange(keys), call.q_documents, call.k_documents
    )
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    largest = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(largest > -jnp.inf, largest, 0))
    total = jnp.sum(weights, axis=-1)
    y = product("bgrts,bsgv->bgrtv", weights, call.v, low, call.dtype)
    y = y / jnp.where(total > 0, total, 1)[..., None]
    return jnp.moveaxis(y, 3, 1).reshape(batch, time, heads, -1)
