"""What every backend of attention is given, and the mask that follows from it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Call(NamedTuple):
    """Queries, the keys they may attend to, and what limits them.

    The S keys are those of the cache, where there is one, followed by the T tokens' own; query t
    stands at key S - T + t and attends to none after it. Where documents are given, it attends to
    the keys with its own number alone; a negative number belongs to nobody.
    """

    q: Float[Array, "B T H K"]
    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G V"]
    q_documents: Int[Array, "B T"] | None
    k_documents: Int[Array, "B S"] | None
    scale: float
    dtype: jnp.dtype  # of scores, softmax and sums: float32 or float64
    block_size: int | None


def visible(
    q_index: Int[Array, " T"],
    k_index: Int[Array, " S"],
    q_documents: Int[Array, "B T"] | None,
    k_documents: Int[Array, "B S"] | None,
) -> Bool[Array, "... T S"]:
    """`[B T S]`, or `[1 T S]` where rows do not differ: which keys a query may attend to.

    Indices count the keys from the first one on.
    """
    causal = (k_index[None] <= q_index[:, None])[None]
    if q_documents is None:
        return causal
    k_documents = k_documents[:, None]
    return causal & (k_documents == q_documents[..., None]) & (k_documents >= 0)
