"""The channel mix of RWKV-4 (arXiv 2305.13048, section 3.1): a feed-forward layer that sees the
token before.

x_k = mu_k x_t + (1 - mu_k) x_{t-1},  x_r likewise                   per channel
y = sigmoid(R x_r) * V relu(K x_k)^2
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.errors import UserError
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import Projection
from xlstm_jax.models.mixer import (
    ONE_DOCUMENT,
    Depth,
    Mixer,
    Parts,
    Segments,
    check_whole_time,
)
from xlstm_jax.models.token_shift import TokenMix, share_init, token_shift
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "rwkv4_channel"


@dataclasses.dataclass(frozen=True)
class RWKV4ChannelConfig:
    """Settings of RWKV-4's channel mix."""

    factor: float = setting(4.0, "hidden dimension / D", above=0)

    def hidden_dim(self, dim: int) -> int:
        """F."""
        return round(self.factor * dim)


class RWKV4Channel(nn.Module):
    """The mixer; see the top of this file. Its state is the last token."""

    settings: RWKV4ChannelConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: Float[Array, "B D"] | None = None,
        segments: Segments | None = None,
    ) -> tuple[Activations, Float[Array, "B D"]]:
        dim, hidden, init = self.dim, self.settings.hidden_dim(self.dim), small_init(self.dim)
        before, state = token_shift(x, state, segments or ONE_DOCUMENT)
        inits = dict.fromkeys(("key", "receptance"), share_init(self.depth))
        for_key, for_receptance = TokenMix(inits, name="mix")(x, before)
        k = Projection(hidden, ("embed", "ffn"), init, name="key")(for_key)
        r = Projection(dim, ("embed", "inner"), init, name="receptance")(for_receptance)
        value_init = wang_init(dim, self.depth.num_blocks)
        value = Projection(dim, ("ffn", "embed"), value_init, name="value")
        return jax.nn.sigmoid(r) * value(jnp.square(jax.nn.relu(k))), state


def empty_state(
    settings: RWKV4ChannelConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> Float[Array, "B D"]:
    """Zeros before the first token."""
    return jnp.zeros((batch_size, dim), dtype)


def flops(settings: RWKV4ChannelConfig, dim: int, context_length: int) -> float:
    """Projections; per channel 3 for each of two mixtures and 2 for the receptance, per hidden
    channel 2.
    """
    hidden = settings.hidden_dim(dim)
    return 2 * (2 * dim * hidden + dim * dim) + 8 * dim + 2 * hidden


def check(settings: RWKV4ChannelConfig, dim: int, parts: Parts) -> None:
    """There must be hidden channels; the time can't be spread."""
    if settings.hidden_dim(dim) < 1:
        raise UserError(
            f"config key model.{NAME}.factor is {settings.factor}, which leaves no hidden channel "
            f"of model.dim {dim}; use a larger one"
        )
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=RWKV4ChannelConfig,
    module=RWKV4Channel,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"key", "value", "receptance"}),
)
