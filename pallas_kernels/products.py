"""Products of matrices: operands in the type of the inputs, sums in that of the states."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def product_dtype(low: jnp.dtype, high: jnp.dtype) -> jnp.dtype:
    """The type that operands of products have: that of the inputs, or for float16 that of the
    states. float16's largest number is 65,504, and a state, a sum over all that it remembers, is
    often larger.
    """
    return high if low == jnp.float16 else low


def product(
    equation: str,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    low: jnp.dtype,
    high: jnp.dtype,
    *,
    full: bool | None = None,
) -> Float[Array, "..."]:
    """einsum of x and y cast to the type `low`, added up in the type `high`.

    full: whether the device must multiply float32 numbers as float32 (True), or may round them to
    the type that it multiplies fastest (False). None is True for a `low` of float32 or more. A
    narrower `low` leaves no float32 operands but those of the gradients' products; rounding them
    loses nothing that the inputs had.
    """
    full = jnp.dtype(low).itemsize >= 4 if full is None else full
    return jnp.einsum(
        equation,
        x.astype(low),
        y.astype(low),
        precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
        preferred_element_type=high,
    )
