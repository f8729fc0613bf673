"""Forget gates that later layers can't close below a learned bound (HGRN, arXiv 2311.04823, section
3.2; HGRN2, arXiv 2404.07904).

bound of layer l = p_1 + ... + p_l     p = softmax over the layers 0, 1, ... of a parameter [N D]
f = bound + (1 - bound) sigmoid(z)

The first layer's bound is 0 and each layer's is above that of the layer before it, so that later
layers forget more slowly.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.initializers import zeros
from xlstm_jax.parallel import gathered
from xlstm_jax.typing import Array, Float


class LowerBounds(nn.Module):
    """The bounds of all layers, one per channel, for `Mixer.stack`. They start at l/N."""

    settings: Any
    dim: int
    count: int

    @nn.compact
    def __call__(self) -> Float[Array, "N D"]:
        init = nn.with_logical_partitioning(zeros, ("layers", "inner"))
        logits = self.param("lower_bounds", init, (self.count, self.dim))
        shares = jax.nn.softmax(gathered(logits, "layers", "inner"), axis=0)
        return jnp.cumsum(shares.at[0].set(0), axis=0)


def bounded_forget_gate(
    z: Float[Array, "B T D"], bound: Float[Array, " D"]
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """(log f, 1 - f), float32 or better.

    Neither loses its digits where f is near 1 or near 0, and a gate that is closed altogether has
    finite gradients.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    rest = 1 - bound
    closed = rest * jax.nn.sigmoid(-z)  # 1 - f
    log_f = jnp.where(
        closed < 0.5,
        jnp.log1p(-jnp.minimum(closed, 0.5)),
        jnp.log(jnp.maximum(bound + rest * jax.nn.sigmoid(z), jnp.finfo(z.dtype).tiny)),
    )
    return log_f, closed
