"""The layers that mixers are made of: projections, norms, soft caps, heads.

Parameters are float32 and carry the names of their logical axes; products run in the dtype of their
input.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xlstm_jax.models import cpu_forms, gpu_forms
from xlstm_jax.models.cpu_forms import (
    project,
    project_in_parts,
    scale_channels,
)
from xlstm_jax.models.initializers import Initializer, zeros
from xlstm_jax.parallel import constrain, gathered, num_shards, platform
from xlstm_jax.parallel.kernels import row_norm
from xlstm_jax.typing import Activations, Array, Float, HeadActivations


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
        y = project(checkpoint_name(x, "operands"), _kernel(self, x.shape[-1]))
        return y + _bias(self).astype(y.dtype) if self.use_bias else y


class Dropout(nn.Module):
    """Sets entries to 0 with a probability, and divides the others by what is left.

    As flax's own, to the last bit; that one draws in float64, and therefore otherwise, where 64-bit
    types are enabled.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, deterministic: bool) -> Float[Array, "..."]:
        if deterministic or self.rate == 0:
            return x
        kept = 1 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), jnp.float32(kept), x.shape)
        return jnp.where(mask, x / kept, jnp.zeros_like(x))


class SplitProjection(nn.Module):
    """A linear map whose kernel's columns stand for several outputs of one size.

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
        x = checkpoint_name(x, "operands")
        outputs = project_in_parts(x, _kernel(self, x.shape[-1]), self.parts)
        if not self.use_bias:
            return outputs
        biases = jnp.split(_bias(self), self.parts)
        return [y + bias.astype(y.dtype) for y, bias in zip(outputs, biases, strict=True)]


class LowRankProjection(nn.Module):
    """up(activation(down x)): linear maps of D channels to F through a few channels, several side
    by side. Their results are float32 or better, as gates need them.

    Attributes:
        features: F, of each map.
        rank: the channels between.
        axis: logical name of the output's channels.
        down_init, up_init: initializers of the kernels.
        activation: between the two kernels.
        parts: number of maps.
    """

    features: int
    rank: int
    axis: str
    down_init: Initializer
    up_init: Initializer
    activation: Callable[[Array], Array] = lambda x: x
    parts: int = 1

    @nn.compact
    def __call__(self, x: Activations) -> list[Float[Array, "B T F"]]:
        down = Kernel(self.parts * self.rank, ("embed", "rank"), self.down_init, name="down")
        up = Kernel(self.features, ("rank", self.axis), self.up_init, name="up")
        high = jnp.promote_types(x.dtype, jnp.float32)
        narrow = self.activation(project(x, down(x.shape[-1])))
        return [
            jnp.matmul(part, kernel.astype(x.dtype), preferred_element_type=high)
            for part, kernel in zip(
                jnp.split(narrow, self.parts, axis=-1),
                jnp.split(up(self.parts * self.rank), self.parts),
                strict=True,
            )
        ]


class Kernel(nn.Module):
    """The kernel of a `Projection` by itself; attributes as there."""

    features: int
    axes: tuple[str, str]
    init: Initializer

    @nn.compact
    def __call__(self, dim: int) -> Float[Array, "D F"]:
        return _kernel(self, dim)


def project_together(
    x: Float[Array, "B T D"], kernels: Sequence[Kernel]
) -> list[Float[Array, "B T _"]]:
    """x through several projections without biases. On a GPU their gradients are one product each,
    unless kernels are spread over devices: joined, outputs would move and kernels be gathered once
    more.
    """
    x, axes = checkpoint_name(x, "operands"), kernels[0].axes
    weights = [kernel(x.shape[-1]) for kernel in kernels]
    if platform() != "gpu" or num_shards(*axes, "time") > 1:
        return [project(x, kernel) for kernel in weights]
    weights = [checkpoint_name(kernel.astype(x.dtype), "operands") for kernel in weights]
    rows = gpu_forms.products_of_one_input(x.reshape(-1, x.shape[-1]), weights)
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in rows]


def _kernel(module: Any, dim: int) -> Float[Array, "D F"]:
    return module.param(
        "kernel", nn.with_logical_partitioning(module.init, module.axes), (dim, module.features)
    )


def _bias(module: Any) -> Float[Array, " F"]:
    init = nn.with_logical_partitioning(zeros, module.axes[1:])
    return module.param("bias", init, (module.features,))


def round_up(size: float, multiple: int = 64) -> int:
    """The smallest multiple of `multiple` that is at least `size`. A size that is above one by no
    more than rounding errors counts as that one: 8/3 x 768 gives 2048.
    """
    return math.ceil(round(size / multiple, 9)) * multiple


class Mapped(NamedTuple):
    """The result of a block-diagonal map, and what it was made of.

    A further linear map of the value can be computed from x, with the product of both kernels,
    which spares a pass over the value (`mlstm_cell.gates_of`). Code that changes the value makes a
    plain array of it, without x and kernel: what follows then sees the changed value and can't go
    round it.
    """

    value: Float[Array, "B T I"]
    x: Float[Array, "B T I"]
    kernel: Float[Array, "N i o"]

    def then(self, kernel: Float[Array, "I F"]) -> Float[Array, "I F"]:
        """The kernel of this map and another one after it, as one map of x."""
        blocks = kernel.reshape(*self.kernel.shape[:2], -1)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("nio,nof->nif", self.kernel, blocks, precision=highest).reshape(
            kernel.shape
        )


class Fused(NamedTuple):
    """One of q, k and v as a kernel made them, with the gates' pre-activations that are linear in
    all three.

    As with `Mapped`, code that changes the value makes a plain array of it; the gates are then
    computed from the values, so that they see the changed one (`mlstm_cell.gates_of`).
    """

    value: Float[Array, "B T I"]
    place: int  # of q, k, v
    gates: Float[Array, "B T G"]

    @classmethod
    def gates_with(cls, inputs: Sequence[Any]) -> Float[Array, "B T G"] | None:
        """The gates that came with these, if they are the q, k and v of one kernel."""
        if not all(isinstance(x, cls) and x.gates is inputs[0].gates for x in inputs):
            return None
        return inputs[0].gates if [x.place for x in inputs] == [0, 1, 2] else None


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

    def __call__(self, x: Float[Array, "B T I"]) -> Mapped:
        forms = gpu_forms if platform() == "gpu" else cpu_forms
        return Mapped(forms.block_diagonal_product(x, self.kernel), x, self.kernel)


def normalize(x: Float[Array, "... D"], eps: float, *, center: bool) -> Float[Array, "... D"]:
    """x over its root mean square, after subtracting the mean if `center`; float32 or better."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if center:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _channel_vector(module: nn.Module, name: str, value: float, dim: int, axis: str) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.constant(value, jnp.float32), (axis,))
    return gathered(module.param(name, init, (dim,)), axis)


def _scaled_norm(
    x: Activations, scale: Float[Array, " D"], eps: float, *, center: bool
) -> Activations:
    """`normalize` times the scale, in float32 or better; on a GPU in the dtype of x."""
    if platform() == "gpu":
        return row_norm(x, scale, eps, center=center)
    return scale_channels(normalize(x, eps, center=center), scale)


RESIDUAL_STREAM = ("batch", "time", "channels")  # whole channels: a norm's sums need them


class LayerNorm(nn.Module):
    """Layer norm, with a bias if asked for; statistics in float32."""

    eps: float
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x, dim = constrain(x, *RESIDUAL_STREAM), x.shape[-1]
        scale = _channel_vector(self, "scale", 1, dim, "embed")
        if self.use_bias:
            y = scale_channels(normalize(x, self.eps, center=True), scale)
            y = y + _channel_vector(self, "bias", 0, dim, "embed")
        else:
            y = _scaled_norm(x, scale, self.eps, center=True)
        return constrain(y.astype(x.dtype), *RESIDUAL_STREAM)


class RMSNorm(nn.Module):
    """Root-mean-square norm without bias; statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        x = constrain(x, *RESIDUAL_STREAM)
        scale = _channel_vector(self, "scale", 1, x.shape[-1], "embed")
        y = _scaled_norm(x, scale, self.eps, center=False)
        return constrain(y.astype(x.dtype), *RESIDUAL_STREAM)


class HeadNorm(nn.Module):
    """Layer norm over each head's outputs, then one scale per channel: "GroupNorm" in the paper's
    figures 10 and 11.

    Attributes:
        center: subtract the mean; without it a root-mean-square norm.
        use_bias: add a bias per channel.
        one_scale: all heads have the same scale [V].
    """

    eps: float
    center: bool = True
    use_bias: bool = False
    one_scale: bool = False

    def __call__(self, h: HeadActivations) -> Float[Array, "B T H*V"]:
        scale, bias = self._weights(h)
        several_tokens = h.shape[1] > 1  # for one, a second kernel's launch takes longer than both
        if platform() == "gpu" and several_tokens and bias is None:
            return gpu_forms.head_norm(h, scale, self.eps, center=self.center)
        y = normalize(h, self.eps, center=self.center).reshape(*h.shape[:2], -1)
        y = scale_channels(y, scale)
        if bias is not None:
            y = y + bias
        return y.astype(h.dtype)

    def scale(self, h: HeadActivations) -> Float[Array, " H*V"]:
        """What each channel of the normed heads is multiplied with."""
        return self._weights(h)[0]

    @nn.compact
    def _weights(self, h: HeadActivations) -> tuple[Array, Array | None]:
        heads, head_dim = h.shape[-2:]
        if self.one_scale:
            scale = jnp.tile(_channel_vector(self, "scale", 1, head_dim, "head_dim_out"), heads)
        else:
            scale = _channel_vector(self, "scale", 1, heads * head_dim, "inner")
        if not self.use_bias:
            return scale, None
        return scale, _channel_vector(self, "bias", 0, heads * head_dim, "inner")


def record_gates(module: nn.Module, i: Float[Array, "..."], f: Float[Array, "..."]) -> None:
    """Notes a mixer's mean gates in the collection "statistics", for callers that make it mutable;
    else nothing is computed.

    The pre-activation of the input gate, how much it spreads, and the share that the forget gate
    keeps, under the name of the mixer's class: "mlstm_forget_gate".
    """
    if module.is_initializing():  # every collection is mutable then
        return
    kind = type(module).__name__.lower()
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
