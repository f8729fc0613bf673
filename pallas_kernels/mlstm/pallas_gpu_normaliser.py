"""The mLSTM's normaliser on Hopper GPUs: K numbers a chunk, which XLA computes in float32."""

import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from pallas_kernels.mlstm.gates import TokenNumbers
from pallas_kernels.typing import Keys


def walk_vectors(
    x: Keys,
    b: TokenNumbers,
    w_last: Float[Array, "B H N"],
    z: Float[Array, "B H K"],
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "B H N K"], Float[Array, "B H K"]]:
    """z <- w_last z + sum of b_t x_t, chunk by chunk: z before each chunk, and after the last."""
    chunks = w_last.shape[-1]
    b = jnp.moveaxis(b.reshape(*b.shape[:2], chunks, -1), 1, 3)
    sums = jnp.moveaxis(jnp.sum(_products(x, b[..., None]), axis=2), 1, 2)
    first = -1 if reverse else 0
    sums = sums.at[:, :, first].add(w_last[:, :, first, None] * z)

    def compose(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    _, after = lax.associative_scan(compose, (w_last[..., None], sums), axis=2, reverse=reverse)
    if reverse:
        return jnp.concatenate([after[:, :, 1:], z[:, :, None]], axis=2), after[:, :, 0]
    return jnp.concatenate([z[:, :, None], after[:, :, :-1]], axis=2), after[:, :, -1]


def dot_vectors(q: Keys, n: Float[Array, "B H N K"]) -> TokenNumbers:
    """q_t·n of each token with its chunk's n."""
    dots = jnp.sum(_products(q, jnp.moveaxis(n, 2, 1)[:, :, None]), axis=-1)
    return jnp.moveaxis(dots, 3, 1).reshape(*n.shape[:2], -1)


def _products(x: Keys, y: Float[Array, "B N ..."]) -> Float[Array, "B N L H K"]:
    """x * y, to be summed, in the layout of x, so that XLA reads x once and writes no product.

    Without the layout, or as a dot_general, XLA turns x round first: it writes and reads a float32
    copy, five times the bytes of x.
    """
    product = x.reshape(x.shape[0], y.shape[1], -1, *x.shape[2:]).astype(jnp.float32) * y
    return with_layout_constraint(product, Layout(tuple(range(product.ndim))))
