"""Rotary position embedding: queries and keys turned by angles that grow with their position."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.typing import state_dtype


def rotary(
    x: Float[Array, "B T H K"], positions: Int[Array, "*B T"], theta: float = 10000.0
) -> Float[Array, "B T H K"]:
    """Turns the pair (x_j, x_{j+K/2}) of a token at position p by the angle p · theta^(-2j/K).

    positions is `[B T]`, or `[T]` for all rows; K must be even. Angles are float32 (float64 when x
    is), the result has x's type. Pairs are halves apart, as in transformers' Llama, and not
    neighbours. Source: arXiv 2104.09864, equation 34.
    """
    key_dim = x.shape[-1]
    if key_dim % 2:
        raise ValueError(
            f"rotary: x has shape {x.shape}, so {key_dim} dimensions per head; it takes an even "
            f"number."
        )
    if positions.shape not in (x.shape[:2], x.shape[1:2]):
        raise ValueError(
            f"rotary: positions has shape {positions.shape}; with x {x.shape} it must be "
            f"{x.shape[:2]} or {x.shape[1:2]}."
        )
    dtype = state_dtype(x)
    frequencies = theta ** (-jnp.arange(0, key_dim, 2, dtype=dtype) / key_dim)
    positions = jnp.atleast_2d(positions).astype(dtype)
    angles = positions[..., None, None] * frequencies[None, None, None]  # [B or 1, T, 1, K/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
