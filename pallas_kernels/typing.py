"""Notation, array types and states of the cells; the notation table of the whole project starts
here.

  B  batch                          L  chunk length
  T  time (tokens of one call)      N  number of chunks
  H  heads                          D  model dimension
  K  query/key dimension per head   F  feed-forward dimension
  V  value dimension per head       E  vocabulary

Array arguments are laid out batch first: `B T H K`. Lower-case names in the code are the paper's:
q, k, v, i, f, C, n, m, h.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

Keys = Float[Array, "B T H K"]  # queries too
Values = Float[Array, "B T H V"]  # outputs too
Gates = Float[Array, "B T H"]  # pre-activations or logarithms of the mLSTM's scalar gates
SegmentIds = Int[Array, "B T"]  # document numbers; negative = padding
LastSegment = Int[Array, " B"]  # the document a sequence ended with; negative = nothing seen yet
TokenFlags = Bool[Array, "B T"]
Rows = Float[Array, "R I"]  # all tokens of all rows of the batch, in all channels


class MLSTMState(NamedTuple):
    """Matrix memory C, normaliser n and stabiliser m: the true memory is C·exp(m), the true
    normaliser n·exp(m).
    """

    C: Float[Array, "B H K V"]
    n: Float[Array, "B H K"]
    m: Float[Array, "B H"]

    @classmethod
    def empty(
        cls, batch: int, heads: int, key_dim: int, value_dim: int, dtype: DTypeLike = jnp.float32
    ) -> "MLSTMState":
        """The state before the first token, and after a reset: zeros everywhere."""
        return cls(
            jnp.zeros((batch, heads, key_dim, value_dim), dtype),
            jnp.zeros((batch, heads, key_dim), dtype),
            jnp.zeros((batch, heads), dtype),
        )


class SLSTMState(NamedTuple):
    """Cell c, normaliser n, output h and stabiliser m: the true cell is c·exp(m), the true
    normaliser n·exp(m).
    """

    c: Float[Array, "B H V"]
    n: Float[Array, "B H V"]
    h: Float[Array, "B H V"]
    m: Float[Array, "B H V"]

    @classmethod
    def empty(
        cls, batch: int, heads: int, value_dim: int, dtype: DTypeLike = jnp.float32
    ) -> "SLSTMState":
        """The state before the first token, and after a reset: zeros everywhere."""
        return cls(*(jnp.zeros((batch, heads, value_dim), dtype) for _ in range(4)))


def state_dtype(*arrays: Array) -> jnp.dtype:
    """The type that states and sums are kept in: float64 if any input is, otherwise float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def require_type(name: str, x: Array, types: tuple[DTypeLike, ...]) -> None:
    """Raises NotImplementedError where an argument has none of the types that a backend serves."""
    if x.dtype not in types:
        *others, last = (jnp.dtype(served).name for served in types)
        raise NotImplementedError(f"{name} must be {', '.join(others)} or {last}; it is {x.dtype}")
