"""The layers that blocks are made of: projections, norms, the gated feed-forward layer.

Parameters are float32 and carry the names of their logical axes; products run in the dtype of their
input.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.initializers import Initializer
from xlstm_jax.parallel import constrain, gathered, num_shards
from xlstm_jax.typing import Activations, Array, Float, HeadActivations


def project(x: Float[Array, "... D"], kernel: Float[Array, "D F"]) -> Float[Array, "... F"]:
    """x @ kernel in the dtype of x.

    The leading axes are flattened first: XLA's CPU backend then sees one plain matrix product, also
    for the kernel's gradient (one training step's projections at D 256, B 8, T 256: 105 ms instead
    of 145 ms). Not where the time is spread over devices: rows and time can't be one axis then
    without all tokens on every device.
    """
    if num_shards("time") > 1:
        return x @ kernel.astype(x.dtype)
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Projection(nn.Module):
    """A linear map.

    Attributes:
        features: output dimension.
        axes: logical names of the kernel's two axes.
        init: initializer of the kernel.
        use_bias: add a bias, which starts at zero.
    """

    features: int
    axes: tuple[str, str]
    init: Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        y = project(x, _kernel(self, x.shape[-1]))
        return y + _bias(self).astype(y.dtype) if self.use_bias else y


class SplitProjection(nn.Module):
    """A linear map whose kernel's columns stand for several outputs of one size.

    Either the kernel is cut or its product with x, and what is cut is copied: the smaller of the
    two. So a step of a few tokens does not copy its weights (162M parameters, a token on 2 CPU
    cores: 10.6 ms instead of 15.7).

    Attributes:
        features: dimension of all outputs together.
        axes, init, use_bias: as in `Projection`.
        parts: number of outputs.
    """

    features: int
    axes: tuple[str, str]
    init: Initializer
    parts: int = 2
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> list[Float[Array, "... _"]]:
        kernel = _kernel(self, x.shape[-1])
        if x.size < kernel.shape[0] ** 2:
            outputs = jnp.split(project(x, kernel), self.parts, axis=-1)
        else:
            outputs = [project(x, part) for part in jnp.split(kernel, self.parts, axis=-1)]
        if not self.use_bias:
            return outputs
        biases = jnp.split(_bias(self), self.parts)
        return [y + bias.astype(y.dtype) for y, bias in zip(outputs, biases, strict=True)]


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


def _bias(module: Any) -> Float[Array, " F"]:
    init = nn.with_logical_partitioning(nn.initializers.zeros, module.axes[1:])
    return module.param("bias", init, (module.features,))


def round_up(size: float, multiple: int = 64) -> int:
    """The least multiple from `size` on; what is above a whole number by rounding only is not
    above it (8/3 x 768).
    """
    return math.ceil(round(size / multiple, 9)) * multiple


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


FEW_CHANNELS = 1024  # at most so many: no product of matrices
GROUP_CHANNELS = 32  # channels of one product in the kernel's gradient


def block_diagonal_product(
    x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]
) -> Float[Array, "B T I"]:
    """Each block of i neighbouring channels times its own [i o] matrix, in the dtype of x.

    Up to 1,024 channels that lie on one device the product is i elementwise multiplications and the
    kernel's gradient products of 32 channels, of which only the diagonal blocks are kept: many tiny
    products cost more in rearranging their operands, a dense one in multiplying (the gradient from
    8,192 tokens of 512 channels, block size 4, on a CPU: 5 ms; in products of 128 channels 6 ms, of
    all 512 11 ms).
    """
    num_blocks, size, _ = kernel.shape
    kernel = kernel.astype(x.dtype)
    if num_blocks * size > FEW_CHANNELS or num_shards("time", "inner") > 1:
        return jnp.einsum(
            "btni,nio->btno", x.reshape(*x.shape[:-1], num_blocks, size), kernel
        ).reshape(x.shape)
    return _multiply_blocks(x, kernel)


@jax.custom_vjp
def _multiply_blocks(
    x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]
) -> Float[Array, "B T I"]:
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return sum(blocks[..., i, None] * kernel[:, i] for i in range(kernel.shape[1])).reshape(x.shape)


def _multiply_blocks_backward(
    kept: tuple[Array, Array], dy: Float[Array, "B T I"]
) -> tuple[Array, Array]:
    x, kernel = kept
    num_blocks, size, _ = kernel.shape
    blocks = math.gcd(num_blocks, max(1, GROUP_CHANNELS // size))  # of a group
    x_groups, dy_groups = (a.reshape(-1, num_blocks // blocks, blocks * size) for a in (x, dy))
    every_pair = jnp.einsum("tgi,tgo->gio", x_groups, dy_groups).reshape(
        -1, blocks, size, blocks, size
    )
    d_kernel = jnp.einsum("gbibo->gbio", every_pair).reshape(kernel.shape)
    return _multiply_blocks(dy, jnp.swapaxes(kernel, 1, 2)), d_kernel


_multiply_blocks.defvjp(
    lambda x, kernel: (_multiply_blocks(x, kernel), (x, kernel)), _multiply_blocks_backward
)


def sum_over_tokens(x: Float[Array, "B T D"]) -> Float[Array, " D"]:
    """Each channel's sum, in float32 or better.

    Written as a product with ones: XLA's CPU backend takes 0.3 ms for 2,048 tokens of 512 channels
    that way, 1.2 ms for a sum. Where a sequence lies on one device its eighths are added first, in
    the pass that computes x: the product then reads an eighth of it from memory (a convolution,
    SiLU and gradients, 8,192 tokens: 5.5 ms instead of 10).
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if num_shards("time") == 1 and x.shape[1] % 8 == 0:
        x = jnp.sum(x.reshape(x.shape[0], 8, -1, x.shape[-1]), axis=1)
    return jnp.einsum(
        "bt,btd->d", jnp.ones(x.shape[:2], x.dtype), x, precision=jax.lax.Precision.HIGHEST
    )


@jax.custom_vjp
def scale_channels(x: Float[Array, "B T D"], scale: Float[Array, " D"]) -> Float[Array, "B T D"]:
    """x * scale, both of one dtype; the gradient of scale is one `sum_over_tokens`."""
    return x * scale


def _scale_channels_backward(
    kept: tuple[Array, Array], dy: Float[Array, "B T D"]
) -> tuple[Array, Array]:
    x, scale = kept
    return dy * scale, sum_over_tokens(x * dy).astype(scale.dtype)


scale_channels.defvjp(lambda x, scale: (x * scale, (x, scale)), _scale_channels_backward)


@jax.custom_vjp
def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(x), of which the backward pass finds x alone and computes the sigmoid again.

    Kept, it is an array as large as x in every block (4 blocks at D 256, B 8, T 1024 on a CPU:
    1,543 instead of 1,408 MB of temporaries, and 0.82 instead of 0.75 s a step, because their pages
    are new in every step).
    """
    return jax.nn.silu(x)


def _silu_backward(x: Float[Array, "..."], dy: Float[Array, "..."]) -> tuple[Array]:
    # As a tanh: XLA would recognize the forward pass' sigmoid and keep it. A jax.checkpoint, whose
    # barrier prevents that too, keeps the TPU's compiler from joining it with its neighbours (8 to
    # 16 % more bytes in a step of the 125M model).
    high = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sigmoid = (1 + jnp.tanh(high / 2)) / 2
    return ((dy * sigmoid * (1 + high * (1 - sigmoid))).astype(x.dtype),)


silu.defvjp(lambda x: (jax.nn.silu(x), x), _silu_backward)


def normalize(x: Float[Array, "... D"], eps: float, *, center: bool) -> Float[Array, "... D"]:
    """x over its root mean square (after subtracting the mean if `center`), in float32 or better."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if center:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _channel_vector(module: nn.Module, name: str, value: float, dim: int, axis: str) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.constant(value), (axis,))
    return gathered(module.param(name, init, (dim,)), axis)


RESIDUAL_STREAM = ("batch", "time", "channels")  # whole channels: a norm's sums need them


class LayerNorm(nn.Module):
    """Layer norm, with a bias if asked for; statistics in float32."""

    eps: float
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x, dim = constrain(x, *RESIDUAL_STREAM), x.shape[-1]
        scale = _channel_vector(self, "scale", 1, dim, "embed")
        y = scale_channels(normalize(x, self.eps, center=True), scale)
        if self.use_bias:
            y = y + _channel_vector(self, "bias", 0, dim, "embed")
        return constrain(y.astype(x.dtype), *RESIDUAL_STREAM)


class RMSNorm(nn.Module):
    """Root-mean-square norm without bias; statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x = constrain(x, *RESIDUAL_STREAM)
        scale = _channel_vector(self, "scale", 1, x.shape[-1], "embed")
        y = scale_channels(normalize(x, self.eps, center=False), scale).astype(x.dtype)
        return constrain(y, *RESIDUAL_STREAM)


class HeadNorm(nn.Module):
    """Layer norm over each head's outputs, then one scale per channel: "GroupNorm" in the paper's
    figures 10 and 11.
    """

    eps: float

    @nn.compact
    def __call__(self, h: HeadActivations) -> Float[Array, "B T H*V"]:
        y = normalize(h, self.eps, center=True).reshape(*h.shape[:2], -1)
        scale = _channel_vector(self, "scale", 1, y.shape[-1], "inner")
        return scale_channels(y, scale).astype(h.dtype)


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
