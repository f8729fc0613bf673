"""The definition of `row_norm`, which XLA compiles well for several rows."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.row_norm.call import Call, Options


def row_norm_plain(call: Call, options: Options) -> Float[Array, "R D"]:
    """The definition; statistics in float32 or better."""
    x, scale = call
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if options.center:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    rate = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + options.eps)
    return (wide * rate * scale).astype(x.dtype)
