"""The causal depthwise convolution with its window of earlier inputs as explicit state, exact at
document borders.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.segments import last_segment
from xlstm_jax.models import gpu_forms
from xlstm_jax.models.cpu_forms import sum_of_taps
from xlstm_jax.models.initializers import uniform
from xlstm_jax.parallel import on_own_part, platform
from xlstm_jax.typing import Array, Bool, Float, Int, SegmentIds


class CausalConv(nn.Module):
    """A bias and one weight per channel and tap.

    Attributes:
        width: W, number of taps; the last multiplies the current token.
    """

    width: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T I"],
        window: Float[Array, "B W-1 I"] | None,
        segment_ids: SegmentIds | None = None,
        previous_segment: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T I"], Float[Array, "B W-1 I"]]:
        """As `convolve`."""
        channels = x.shape[-1]
        init = uniform(self.width**-0.5)  # PyTorch's default, which the authors kept
        kernel_init, bias_init = (
            nn.with_logical_partitioning(init, axes) for axes in (("taps", "inner"), ("inner",))
        )
        kernel = self.param("kernel", kernel_init, (self.width, channels))
        bias = self.param("bias", bias_init, (channels,))
        return convolve(x, kernel, bias, window, segment_ids, previous_segment)


def convolve(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "W I"],
    bias: Float[Array, " I"],
    window: Float[Array, "B W-1 I"] | None,
    segment_ids: SegmentIds | None,
    previous_segment: Int[Array, " B"] | None,
) -> tuple[Float[Array, "B T I"], Float[Array, "B W-1 I"]]:
    """The convolution of x, and the window after its last token; no window stands for zeros."""
    if window is None:
        window = jnp.zeros((x.shape[0], kernel.shape[0] - 1, x.shape[-1]), x.dtype)
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    tokens, channels = ("batch", "time", "inner"), ("batch", None, "inner")
    y, new_window = on_own_part(
        _conv_of_part, x, kernel, bias, window.astype(x.dtype), segment_ids, previous_segment,
        axes=(tokens, ("taps", "inner"), ("inner",), channels, ("batch", "time"), ("batch",)),
        out_axes=(tokens, channels),
    )  # fmt: skip
    return y, new_window.astype(window.dtype)


def _conv_of_part(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "W I"],
    bias: Float[Array, " I"],
    window: Float[Array, "B W-1 I"],
    segment_ids: SegmentIds | None,
    previous_segment: Int[Array, " B"] | None,
    *,
    sequence_axis: str | None,
) -> tuple[Float[Array, "B T I"], Float[Array, "B W-1 I"]]:
    """`causal_conv` where each device has a part of the time. `window` and `previous_segment` are
    those before the whole sequence, and the window that is returned is that after it.

    Each device sends its last W-1 tokens to all others and not to its neighbour alone: where a
    device holds nothing but padding, the tokens that count are those of the device before it.
    """
    if sequence_axis is None:
        return causal_conv(x, kernel, bias, window, segment_ids, previous_segment)
    reach = kernel.shape[0] - 1
    index = jax.lax.axis_index(sequence_axis)
    if segment_ids is None:
        tails = _joined(jax.lax.all_gather(x[:, -reach:], sequence_axis))
        inputs = jnp.concatenate([window, tails], axis=1)
        before = jax.lax.dynamic_slice_in_dim(inputs, index * min(reach, x.shape[1]), reach, axis=1)
        return causal_conv(x, kernel, bias, before)[0], inputs[:, tails.shape[1] :]

    # the last tokens that are no padding, in their order
    last = jnp.argsort(segment_ids >= 0, axis=1, stable=True)[:, -reach:]
    tails = (
        jnp.take_along_axis(x, last[..., None], axis=1),
        jnp.take_along_axis(segment_ids, last, axis=1),
    )
    tails, ids = (_joined(part) for part in jax.lax.all_gather(tails, sequence_axis))
    earlier = jnp.where(jnp.arange(ids.shape[1]) < index * last.shape[1], ids, -1)
    before = window_after(tails, window, earlier, previous_segment)
    y, _ = causal_conv(
        x, kernel, bias, before, segment_ids, last_segment(earlier, previous_segment)
    )
    return y, window_after(tails, window, ids, previous_segment)


def _joined(parts: Array) -> Array:
    """[S B W-1 ...] -> [B S*(W-1) ...]."""
    return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1, *parts.shape[3:])


def causal_conv(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "W I"],
    bias: Float[Array, " I"],
    window: Float[Array, "B W-1 I"],
    segment_ids: SegmentIds | None = None,
    previous_segment: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T I"], Float[Array, "B W-1 I"]]:
    """y_t = bias + sum_w kernel_w x_{t-W+1+w} over the tokens of t's own document, and the last W-1
    inputs of the last document.

    Padding (negative ids) is treated as if it were not there: it enters no window, tokens before it
    reach those behind it, and its own output is 0.
    `previous_segment` is the document that `window` belongs to; None or a negative id: that of the
    first token.
    """
    if segment_ids is None:
        inputs = jnp.concatenate([window, x], axis=1)
        if platform() == "gpu":
            y = gpu_forms.sum_of_taps(inputs, kernel, bias)
        else:
            y = sum_of_taps(inputs, kernel, bias, None)
        return y, inputs[:, x.shape[1] :]

    padding = segment_ids < 0
    inputs, ids, order, has_padding = _without_padding(x, window, segment_ids, previous_segment)
    y = sum_of_taps(inputs, kernel, bias, ids)
    y = jnp.where(padding[..., None], 0, _permute(y, jnp.argsort(order, axis=1), has_padding))
    return y, _last_window(inputs, ids, jnp.sum(~padding, axis=1), window.shape[1])


def window_after(
    x: Float[Array, "B T I"],
    window: Float[Array, "B W-1 I"],
    segment_ids: SegmentIds,
    previous_segment: Int[Array, " B"] | None,
) -> Float[Array, "B W-1 I"]:
    """What `causal_conv` returns as the window after its last token."""
    inputs, ids, _, _ = _without_padding(x, window, segment_ids, previous_segment)
    return _last_window(inputs, ids, jnp.sum(segment_ids >= 0, axis=1), window.shape[1])


def _without_padding(
    x: Float[Array, "B T I"],
    window: Float[Array, "B W-1 I"],
    segment_ids: SegmentIds,
    previous_segment: Int[Array, " B"] | None,
) -> tuple[Float[Array, "B W-1+T I"], Int[Array, "B W-1+T"], Int[Array, "B T"], Bool[Array, ""]]:
    """The window and all tokens, padding last, and their ids; then the order that the tokens were
    brought to, and whether it differs from the old one.
    """
    padding = segment_ids < 0
    x = jnp.where(padding[..., None], 0, x)
    has_padding = jnp.any(padding)
    order = jnp.argsort(padding, axis=1, stable=True)  # tokens to the front, in their order
    x = _permute(x, order, has_padding)
    ids = jnp.take_along_axis(segment_ids, order, axis=1)
    first = (
        ids[:, 0]
        if previous_segment is None
        else jnp.where(previous_segment < 0, ids[:, 0], previous_segment)
    )
    ids = jnp.concatenate([jnp.broadcast_to(first[:, None], window.shape[:2]), ids], axis=1)
    return jnp.concatenate([window, x], axis=1), ids, order, has_padding


def _last_window(
    inputs: Float[Array, "B W-1+T I"],
    ids: Int[Array, "B W-1+T"],
    num_tokens: Int[Array, " B"],
    size: int,
) -> Float[Array, "B W-1 I"]:
    """The last W-1 inputs before the padding, those of earlier documents as zeros."""
    last = num_tokens[:, None] + jnp.arange(size)
    inputs = jnp.take_along_axis(inputs, last[..., None], axis=1)
    last_ids = jnp.take_along_axis(ids, last, axis=1)
    return jnp.where((last_ids == last_ids[:, -1:])[..., None], inputs, 0)


def _permute(
    x: Float[Array, "B T I"], order: Int[Array, "B T"], needed: Bool[Array, ""]
) -> Float[Array, "B T I"]:
    """Reorder the time axis; a batch without padding skips the gather."""
    return jax.lax.cond(
        needed, lambda x: jnp.take_along_axis(x, order[..., None], axis=1), lambda x: x, x
    )
