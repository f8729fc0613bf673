"""The cache of attention: keys and values of the document that is going on, and how it grows.

A later token attends to nothing of an earlier document, so a new document begins at the front of
the cache again, and padding takes no place in it. Nothing in a cache is ever overwritten by a token
that does not fit: see `append`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.typing import TokenFlags


class AttentionState(NamedTuple):
    """Keys and values of the current document, oldest first, and how many tokens it has had.

    Places from `length` on hold nothing of it. A length above N says that the document did not fit:
    its tokens from the N-th on are not stored.
    """

    keys: Float[Array, "B N G K"]
    values: Float[Array, "B N G V"]
    length: Int[Array, " B"]

    @classmethod
    def empty(
        cls,
        batch: int,
        cache_length: int,
        groups: int,
        key_dim: int,
        value_dim: int,
        dtype: DTypeLike = jnp.float32,
    ) -> "AttentionState":
        """Room for documents of up to cache_length tokens, none of them seen yet.

        dtype is that of the stored keys and values: with one that is narrower than theirs, tokens
        that come out of the cache are rounded.
        """
        return cls(
            jnp.zeros((batch, cache_length, groups, key_dim), dtype),
            jnp.zeros((batch, cache_length, groups, value_dim), dtype),
            jnp.zeros((batch,), jnp.int32),
        )


def cache_room(state: AttentionState) -> Int[Array, " B"]:
    """How many tokens of its current document each row can still take; negative: how many it lost.

    Look at it on the host (`int(cache_room(state).min())`) before handing over more tokens.
    """
    return state.keys.shape[1] - state.length


def append(
    state: AttentionState,
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G V"],
    starts: TokenFlags,
    padding: TokenFlags,
    positions: Int[Array, "B T"],
) -> AttentionState:
    """The state after these tokens: those of the last document take the next free places, those
    that find none are only counted.
    """
    cache_length = state.keys.shape[1]
    time = k.shape[1]
    documents = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    lasting = ~padding & (documents == documents[:, -1:])
    # Each token that is not stored has an index of its own beyond the cache, which drops it.
    beyond = cache_length + jnp.arange(time, dtype=jnp.int32)
    index = jnp.where(lasting & (positions < cache_length), positions, beyond[None])
    rows = jnp.arange(len(k))[:, None]

    def write(array: Array, new: Array) -> Array:
        return array.at[rows, index].set(new.astype(array.dtype), mode="drop", unique_indices=True)

    before = jnp.where(documents[:, -1] == 0, state.length, 0)
    length = jnp.maximum(before, jnp.max(jnp.where(lasting, positions + 1, 0), axis=1))
    return AttentionState(write(state.keys, k), write(state.values, v), length)
