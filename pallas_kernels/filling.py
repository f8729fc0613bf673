"""Arrays filled up to the sizes that kernels work in."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def filled(x: Array, axis: int, size: int, value: Any = 0) -> Array:
    """x with `value` at the end of an axis, up to the next multiple of size."""
    missing = -x.shape[axis] % size
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths, constant_values=value)
