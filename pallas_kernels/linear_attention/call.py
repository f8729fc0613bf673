"""The state of linear attention, and what every backend of it is given."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.typing import Keys, TokenFlags, Values


class LinearAttentionState(NamedTuple):
    """The matrix S: the sum of all k^T v so far, each decayed since it was written."""

    S: Float[Array, "B H K V"]

    @classmethod
    def empty(
        cls, batch: int, heads: int, key_dim: int, value_dim: int, dtype: DTypeLike = jnp.float32
    ) -> "LinearAttentionState":
        """The state before the first token, and after a reset: zeros."""
        return cls(jnp.zeros((batch, heads, key_dim, value_dim), dtype))


class Call(NamedTuple):
    """q, k, v as given, padding made neutral; the rest float32 or float64.

    log_decay has P = K numbers per head and token, or P = 1; it is -inf where a document starts.
    With a bonus the state is read before the token decays it and writes to it.
    """

    q: Keys
    k: Keys
    v: Values
    log_decay: Float[Array, "B T H P"]
    bonus: Float[Array, "H K"] | None
    S: Float[Array, "B H K V"]
    starts: TokenFlags | None
    chunk_size: int | None
