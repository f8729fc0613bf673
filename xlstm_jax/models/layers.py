"""The layers that blocks are made of: projections, norms, the gated feed-forward layer.

Parameters are float32 and carry the names of their logical axes; products run in the dtype of their
input.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.cpu_forms import (
    block_diagonal_product,
    project,
    project_in_parts,
    scale_channels,
)
from xlstm_jax.models.cpu_forms import silu as silu
from xlstm_jax.models.initializers import Initializer, ones
from xlstm_jax.parallel import constrain, gathered
from xlstm_jax.typing import Activations, Array, Float, HeadActivations


class Projection(nn.Module):
    """A linear map without bias.

    Attributes:
        features: output dimension.
        axes: logical names of the kernel's two axes.
        init: initializer of the kernel.
    """

    features: int
    axes: tuple[str, str]
    init: Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        return project(x, _kernel(self, x.shape[-1]))


class SplitProjection(nn.Module):
    """A linear map without bias whose kernel's columns stand for several outputs of one size.

    Attributes:
        features: dimension of all outputs together.
        axes, init: as in `Projection`.
        parts: number of outputs.
    """

    features: int
    axes: tuple[str, str]
    init: Initializer
    parts: int = 2

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> list[Float[Array, "... _"]]:
        return project_in_parts(x, _kernel(self, x.shape[-1]), self.parts)


class Kernel(nn.Module):
    """The kernel of a `Projection` by itself; attributes as there."""

    features: int
    axes: tuple[str, str]
    init: Initializer

    @nn.compact
    def __call__(self, dim: int) -> Float[Array, "D F"]:
        return _kernel(self, dim)


def _kernel(module: Any, dim: int) -> Float[Array, "D F"]:
    return module.param(
        "kernel", nn.with_logical_partitioning(module.init, module.axes), (dim, module.features)
    )


class BlockDiagonalProjection(nn.Module):
    """A linear map I -> I whose matrix is block-diagonal; bias-free (paper, figure 11: block size 4
    for q, k, v).

    Attributes:
        channels: I.
        block_size: channels of a block.
        init: initializer of the blocks.
    """

    channels: int
    block_size: int
    init: Initializer

    def setup(self):
        shape = (self.channels // self.block_size, self.block_size, self.block_size)
        init = nn.with_logical_partitioning(self.init, ("inner", "block_in", "block_out"))
        self.kernel = self.param("kernel", init, shape)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T I"]:
        return block_diagonal_product(x, self.kernel)

    def followed_by(self, kernel: Float[Array, "I F"]) -> Float[Array, "I F"]:
        """The kernel of this map and then another one, as one map."""
        blocks = kernel.reshape(*self.kernel.shape[:2], -1)
        product = jnp.einsum(
            "nio,nof->nif", self.kernel, blocks, precision=jax.lax.Precision.HIGHEST
        )
        return product.reshape(kernel.shape)


def normalize(x: Float[Array, "... D"], eps: float, *, center: bool) -> Float[Array, "... D"]:
    """x over its root mean square (after subtracting the mean if `center`), in float32 or better."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if center:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _norm_scale(module: nn.Module, dim: int, axis: str) -> Float[Array, " D"]:
    return gathered(
        module.param("scale", nn.with_logical_partitioning(ones, (axis,)), (dim,)),
        axis,
    )


RESIDUAL_STREAM = ("batch", "time", "channels")  # whole channels: a norm's sums need them


class LayerNorm(nn.Module):
    """Layer norm without bias; statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x = constrain(x, *RESIDUAL_STREAM)
        y = scale_channels(
            normalize(x, self.eps, center=True), _norm_scale(self, x.shape[-1], "embed")
        ).astype(x.dtype)
        return constrain(y, *RESIDUAL_STREAM)


class RMSNorm(nn.Module):
    """Root-mean-square norm without bias; statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x = constrain(x, *RESIDUAL_STREAM)
        y = scale_channels(
            normalize(x, self.eps, center=False), _norm_scale(self, x.shape[-1], "embed")
        ).astype(x.dtype)
        return constrain(y, *RESIDUAL_STREAM)


class HeadNorm(nn.Module):
    """Layer norm over each head's outputs, then one scale per channel: "GroupNorm" in the paper's
    figures 10 and 11.
    """

    eps: float

    @nn.compact
    def __call__(self, h: HeadActivations) -> Float[Array, "B T H*V"]:
        y = normalize(h, self.eps, center=True).reshape(*h.shape[:2], -1)
        return scale_channels(y, _norm_scale(self, y.shape[-1], "inner")).astype(h.dtype)


class GatedFeedForward(nn.Module):
    """down(activation(gate) * up); `up_projection` holds the gate's columns, then those of up.

    Attributes:
        features: F, width of gate and up.
        activation: GELU in the paper's sLSTM block, SiLU in xLSTM 7B.
        up_init, down_init: initializers of the two kernels.
    """

    features: int
    activation: Callable[[Any], Any]
    up_init: Initializer
    down_init: Initializer

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        gate, up = SplitProjection(
            2 * self.features, ("embed", "ffn"), self.up_init, name="up_projection"
        )(x)
        return Projection(x.shape[-1], ("ffn", "embed"), self.down_init, name="down_projection")(
            self.activation(gate) * up
        )


def record_gates(
    module: nn.Module, kind: str, i: Float[Array, "..."], f: Float[Array, "..."]
) -> None:
    """Notes a block's mean gates in the collection "statistics", for callers that make it mutable;
    else nothing is computed.

    The pre-activation of the input gate, how much it spreads, and the share that the forget gate
    keeps.
    """
    if module.is_initializing():  # every collection is mutable then
        return
    for name, value in (
        ("input_gate", jnp.mean(i)),
        ("input_gate_std", jnp.std(i)),
        ("forget_gate", jnp.mean(jax.nn.sigmoid(f))),
    ):
        module.sow(
            "statistics", f"{kind}_{name}", value, init_fn=lambda: 0.0, reduce_fn=lambda _, new: new
        )


def soft_cap(x: Float[Array, "..."], bound: float | None) -> Float[Array, "..."]:
    """bound * tanh(x / bound), which keeps |x| below `bound` (xLSTM 7B, equation 13); None: x
    unchanged.
    """
    return x if bound is None else bound * jnp.tanh(x / bound)


def split_heads(x: Float[Array, "B T H*V"], num_heads: int) -> HeadActivations:
    """Neighbouring channels become a head."""
    return x.reshape(*x.shape[:-1], num_heads, -1)
