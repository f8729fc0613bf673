"""Products of matrices: operands in the type of the inputs, sums in that of the states."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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

    full says whether a device has to multiply float32 as float32; where it may not, it may round to
    its fast type, which loses nothing that the inputs had (None: full unless `low` is narrower than
    float32, whose products' gradients are the float32 ones meant here).
    """
    full = jnp.dtype(low).itemsize >= 4 if full is None else full
    return jnp.einsum(
        equation,
        x.astype(low),
        y.astype(low),
        precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
        preferred_element_type=high,
    )
