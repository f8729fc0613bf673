"""The causal depthwise convolution with its window of earlier inputs as explicit state, exact at document borders."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.initializers import uniform
from xlstm_jax.models.layers import sum_over_tokens
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
        """The convolution of x, and the window after its last token; no window stands for zeros."""
        init = uniform(self.width**-0.5)  # PyTorch's default, which the authors kept
        kernel = self.param("kernel", nn.with_logical_partitioning(init, ("taps", "inner")), (self.width, x.shape[-1]))
        bias = self.param("bias", nn.with_logical_partitioning(init, ("inner",)), (x.shape[-1],))
        if window is None:
            window = jnp.zeros((x.shape[0], self.width - 1, x.shape[-1]), x.dtype)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        y, new_window = causal_conv(x, kernel, bias, window.astype(x.dtype), segment_ids, previous_segment)
        return y, new_window.astype(window.dtype)


def causal_conv(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "W I"],
    bias: Float[Array, " I"],
    window: Float[Array, "B W-1 I"],
    segment_ids: SegmentIds | None = None,
    previous_segment: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T I"], Float[Array, "B W-1 I"]]:
    """y_t = bias + sum_w kernel_w x_{t-W+1+w} over the tokens of t's own document, and the last W-1 inputs of the last document.

    Padding (negative ids) is looked through: it enters no window, and its own output is 0. `previous_segment` is the document
    that `window` belongs to; None or a negative id: that of the first token.
    """
    if segment_ids is None:
        inputs = jnp.concatenate([window, x], axis=1)
        return _shifted_sum(inputs, kernel, bias, None), inputs[:, x.shape[1] :]

    padding = segment_ids < 0
    x = jnp.where(padding[..., None], 0, x)
    has_padding = jnp.any(padding)
    order = jnp.argsort(padding, axis=1, stable=True)  # tokens to the front, in their order
    x = _permute(x, order, has_padding)
    ids = jnp.take_along_axis(segment_ids, order, axis=1)

    first = ids[:, 0] if previous_segment is None else jnp.where(previous_segment < 0, ids[:, 0], previous_segment)
    width = kernel.shape[0]
    ids = jnp.concatenate([jnp.broadcast_to(first[:, None], (len(first), width - 1)), ids], axis=1)
    inputs = jnp.concatenate([window, x], axis=1)
    y = _shifted_sum(inputs, kernel, bias, ids)
    y = jnp.where(padding[..., None], 0, _permute(y, jnp.argsort(order, axis=1), has_padding))

    # The last W-1 inputs before the padding, those of earlier documents as zeros.
    num_tokens = jnp.sum(~padding, axis=1)
    last = num_tokens[:, None] + jnp.arange(width - 1)
    inputs = jnp.take_along_axis(inputs, last[..., None], axis=1)
    last_ids = jnp.take_along_axis(ids, last, axis=1)
    return y, jnp.where((last_ids == last_ids[:, -1:])[..., None], inputs, 0)


@jax.custom_vjp
def _shifted_sum(
    inputs: Float[Array, "B W-1+T I"], kernel: Float[Array, "W I"], bias: Float[Array, " I"], ids: Int[Array, "B W-1+T"] | None
) -> Float[Array, "B T I"]:
    """bias plus every tap times the inputs it meets, those of other documents left out.

    The gradient is by hand so that XLA's CPU backend computes dy once: autodiff makes a kernel of its own for every tap, each of which
    computes dy again from its sources (64 ms instead of 10 ms of a block's 100 ms at D 256, B 8, T 256).
    """
    reach = kernel.shape[0] - 1
    time = inputs.shape[1] - reach
    y = bias
    for tap, weight in enumerate(kernel):
        x = inputs[:, tap : tap + time]
        if ids is not None:
            x = jnp.where(_same_document(ids, tap, reach)[..., None], x, 0)
        y = y + x * weight
    return y


def _same_document(ids: Int[Array, "B W-1+T"], tap: int, reach: int) -> Bool[Array, "B T"]:
    """Whether the input that a token meets at a tap belongs to the token's own document."""
    return ids[:, tap : ids.shape[1] - reach + tap] == ids[:, reach:]


def _shifted_sum_backward(kept: tuple[Array, ...], dy: Float[Array, "B T I"]) -> tuple[Array, Array, Array, None]:
    inputs, kernel, bias, ids = kept
    reach = kernel.shape[0] - 1
    around = jnp.pad(dy, ((0, 0), (reach, reach), (0, 0)))  # every input finds a token, real or not, that meets it at a tap
    d_inputs, d_kernel = jnp.zeros_like(inputs), []
    for tap, weight in enumerate(kernel):
        dy_there = around[:, reach - tap : reach - tap + inputs.shape[1]]
        if ids is not None:
            same = jnp.pad(_same_document(ids, tap, reach), ((0, 0), (tap, reach - tap)))
            dy_there = jnp.where(same[..., None], dy_there, 0)
        d_inputs = d_inputs + dy_there * weight
        d_kernel.append(sum_over_tokens(inputs * dy_there))
    return d_inputs, jnp.stack(d_kernel).astype(kernel.dtype), sum_over_tokens(around[:, : inputs.shape[1]]).astype(bias.dtype), None


_shifted_sum.defvjp(lambda *inputs: (_shifted_sum(*inputs), inputs), _shifted_sum_backward)


def _permute(x: Float[Array, "B T I"], order: Int[Array, "B T"], needed: Bool[Array, ""]) -> Float[Array, "B T I"]:
    """Reorder the time axis; a batch without padding skips the gather."""
    return jax.lax.cond(needed, lambda x: jnp.take_along_axis(x, order[..., None], axis=1), lambda x: x, x)
