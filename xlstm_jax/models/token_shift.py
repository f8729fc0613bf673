"""The token shift of the RWKV models: each token sees the token before it in its own document."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.segments import segment_borders
from xlstm_jax.models.cpu_forms import scale_channels
from xlstm_jax.models.initializers import Initializer
from xlstm_jax.models.mixer import Depth, Segments
from xlstm_jax.parallel import gathered
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


class TokenMix(nn.Module):
    """`mix` in several shares that are learned.

    Attributes:
        inits: by what is made of a mixture ("key"), the initializer of its share.
    """

    inits: Mapping[str, Initializer]

    @nn.compact
    def __call__(self, x: Activations, before: Activations) -> list[Activations]:
        mixtures = []
        for name, init in self.inits.items():
            share = self.param(name, nn.with_logical_partitioning(init, ("embed",)), x.shape[-1:])
            mixtures.append(mix(x, before, gathered(share, "embed")))
        return mixtures


def share_init(depth: Depth, exponent: float = 1.0, add: float = 0.0) -> Initializer:
    """(d/D)^(exponent (1 - block/blocks)) + add block/(blocks - 1) for channel d.

    Those are the authors' values: the first channels see the token before, the last ones, and all
    of later blocks, their own.
    """

    def init(key, shape, dtype=jnp.float32):
        index = jnp.asarray(depth.index, dtype)
        channel = jnp.arange(shape[0], dtype=dtype) / shape[0]
        share = channel ** (exponent * (1 - index / depth.num_blocks))
        return share + add * index / max(depth.num_blocks - 1, 1)

    return init
