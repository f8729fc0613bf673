"""The definition of `mlstm_front`, in plain operations; differentiable in every mode. Sums and
gates are float32 or better, q, k and v are rounded to the type of u.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.mlstm_front.call import Call, Front, Inner
from pallas_kernels.typing import state_dtype


def mlstm_front_reference(call: Call) -> Front:
    """q = Q c, k = K c, v = V u, gates = bias + [q k v] gate_kernel."""
    c, u, *matrices, gate_kernel, gate_bias = call
    high = state_dtype(*call)
    product = functools.partial(block_diagonal, high=high)
    q, k, v = (product(x, matrix) for x, matrix in zip((c, c, u), matrices, strict=True))
    values = jnp.concatenate([q, k, v], axis=-1)
    gates = _product("bti,ig->btg", values, gate_kernel, high) + gate_bias.astype(high)
    return Front(q, k, v, gates)


def block_diagonal(x: Inner, kernel: Float[Array, "N i i"], high: jnp.dtype) -> Inner:
    """Each block of i neighbouring channels times its own matrix, in the type of x."""
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return _product("btni,nio->btno", blocks, kernel, high).reshape(x.shape).astype(x.dtype)


def _product(equation: str, x: Array, kernel: Array, high: jnp.dtype) -> Array:
    """The kernel is rounded to the type of x."""
    return jnp.einsum(
        equation, x, kernel.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=high,
    )  # fmt: skip
