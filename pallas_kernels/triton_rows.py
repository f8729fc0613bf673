"""Tiles of tokens and channels in Triton kernels whose arrays are [R I]: all tokens of all rows of
the batch, and channels.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


class Tile:
    """Some tokens, `rows`, of some channels, `columns`. Masks where one of either does not exist,
    and only there: without them addresses are simple, and reads are wide.
    """

    def __init__(
        self, shape: tuple[int, int], tokens: tuple[Any, int], channels: tuple[Any, int]
    ) -> None:
        """Of arrays of this shape; tokens and channels are (number of the tile, its length)."""
        self.rows, self.columns = (at * size + jnp.arange(size) for at, size in (tokens, channels))
        self.some_rows = None if shape[0] % tokens[1] == 0 else self.rows[:, None] < shape[0]
        self.some_columns = None if shape[1] % channels[1] == 0 else self.columns < shape[1]

    def read(self, ref: Any) -> Float[Array, "t g"]:
        """The tile of an array; zeros for what does not exist."""
        return _load(ref.at[self.rows[:, None], self.columns[None, :]], self._mask())

    def write(self, ref: Any, x: Float[Array, "t g"]) -> None:
        """Writes the tile of an array."""
        at = ref.at[self.rows[:, None], self.columns[None, :]]
        _store(at, x.astype(ref.dtype), self._mask())

    def read_row(self, ref: Any) -> Float[Array, "1 g"]:
        """The tile's channels of a row, which all tokens have in common."""
        return _load(ref.at[self.columns], self.some_columns)[None, :]

    def read_whole(self, ref: Any) -> Float[Array, "t P"]:
        """All numbers of each token; zeros for tokens that do not exist."""
        return _load(*self._whole(ref))

    def write_whole(self, ref: Any, x: Float[Array, "t P"]) -> None:
        """Writes all numbers of each token."""
        at, mask = self._whole(ref)
        _store(at, x, mask)

    def _whole(self, ref: Any) -> tuple[Any, Array | None]:
        every = jnp.arange(ref.shape[-1])
        shape = (self.rows.shape[0], ref.shape[-1])
        mask = None if self.some_rows is None else jnp.broadcast_to(self.some_rows, shape)
        return ref.at[self.rows[:, None], every[None, :]], mask

    def _mask(self) -> Array | None:
        shape = (self.rows.shape[0], self.columns.shape[0])
        masks = [
            jnp.broadcast_to(mask, shape)
            for mask in (
                self.some_rows,
                None if self.some_columns is None else self.some_columns[None, :],
            )
            if mask is not None
        ]
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


# imported in the functions, because only these backends need it; jaxlib without a GPU has it too
def _load(ref: Any, mask: Array | None) -> Array:
    from jax.experimental.pallas import triton

    return triton.load(ref, mask=mask, other=None if mask is None else 0)


def _store(ref: Any, x: Array, mask: Array | None) -> None:
    from jax.experimental.pallas import triton

    triton.store(ref, x, mask=mask)
