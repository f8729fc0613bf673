"""Initial values of the parameters: those of the authors' released code.

All make float32 unless told otherwise; those of JAX make float64 where 64 bits are enabled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xlstm_jax.typing import Array, Float, Int

Initializer = Callable[..., jax.Array]


def small_init(dim: int) -> Initializer:
    """N(0, 2/(5 dim)) for embedding, vocabulary projection, up, q, k, v and gate projections; `dim`
    is D, not the fan-in.
    """
    return jax.nn.initializers.normal((2 / (5 * dim)) ** 0.5, jnp.float32)


def wang_init(dim: int, num_blocks: int) -> Initializer:
    """N(0, (2 / (num_blocks sqrt(dim)))^2) for the projections that end a residual branch."""
    return jax.nn.initializers.normal(2 / num_blocks / dim**0.5, jnp.float32)


def zeros(key, shape, dtype=jnp.float32) -> Array:
    """0 everywhere."""
    return jnp.zeros(shape, dtype)


def ones(key, shape, dtype=jnp.float32) -> Array:
    """1 everywhere."""
    return jnp.ones(shape, dtype)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def shifted_normal(mean: float, std: float) -> Initializer:
    """N(mean, std^2)."""

    def init(key, shape, dtype=jnp.float32):
        return mean + std * jax.random.normal(key, shape, dtype)

    return init


def head_linspace(first: float, last: float) -> Initializer:
    """From the first head's value to the last head's in equal steps: the mLSTM's forget-gate bias,
    3 to 6. Both may be infinite.
    """

    def init(key, shape, dtype=jnp.float32):
        if first == last:
            return jnp.full(shape, first, dtype)
        return jnp.linspace(first, last, shape[-1], dtype=dtype)

    return init


def slstm_forget_bias(
    num_heads: int, head_dim: int, block_index: Int[Array, ""], num_blocks: int
) -> Float[Array, "H V"]:
    """5 - 12 (j / (V-1))^(0.3 + 1.3 block/(blocks-1)) for unit j of every head: from +5 down to -7,
    later blocks more slowly.
    """
    depth = jnp.asarray(block_index, jnp.float32) / max(num_blocks - 1, 1)
    unit = jnp.arange(head_dim, dtype=jnp.float32) / max(head_dim - 1, 1)
    return jnp.tile(5.0 - 12.0 * unit ** (0.3 + 1.3 * depth), (num_heads, 1))
