"""The token shift of the RWKV models: each token sees the token before it in its own document."""

import jax
import jax.numpy as jnp

from pallas_kernels.segments import segment_borders
from xlstm_jax.models.cpu_forms import scale_channels
from xlstm_jax.models.mixer import Segments
from xlstm_jax.typing import Activations, Array, Float


def token_shift(
    x: Activations, last: Float[Array, "B D"] | None, segments: Segments
) -> tuple[Activations, Float[Array, "B D"]]:
    """x_{t-1} for each token, zeros for the first of a document, and the last token's x.

    `last` is x of the token before the first one; None stands for zeros. Padding is looked through:
    what a padding token gets means nothing, and the tokens behind it see the one before it.
    """
    if last is None:
        last = jnp.zeros((x.shape[0], x.shape[2]), x.dtype)
    inputs = jnp.concatenate([last.astype(x.dtype)[:, None], x], axis=1)
    if segments.ids is None:
        return inputs[:, :-1], x[:, -1].astype(last.dtype)
    starts, padding = segment_borders(segments.ids, segments.previous)
    # where in `inputs` the last token up to each one stands, padding left out
    place = jnp.where(padding, 0, jnp.arange(1, x.shape[1] + 1))
    place = jax.lax.cummax(place, axis=1)
    before = jnp.pad(place[:, :-1], ((0, 0), (1, 0)))

    def at(places: Array) -> Array:
        return jnp.take_along_axis(inputs, places[..., None], axis=1)

    # a batch without padding skips the gather
    shifted = jax.lax.cond(jnp.any(padding), lambda: at(before), lambda: inputs[:, :-1])
    after = at(place[:, -1:])[:, 0].astype(last.dtype)
    return jnp.where(starts[..., None], 0, shifted), after


def mix(x: Activations, before: Activations, share: Float[Array, " D"]) -> Activations:
    """share x_t + (1 - share) x_{t-1}, per channel."""
    return before + scale_channels(x - before, share.astype(x.dtype))
