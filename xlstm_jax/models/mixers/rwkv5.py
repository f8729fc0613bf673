"""The time mix of RWKV-5 (x052, "Eagle", arXiv 2404.05892): a matrix state with one
learned decay per channel.

x_r = mu_r x_t + (1 - mu_r) x_{t-1},  x_k, x_v and x_g likewise     per channel
w = exp(-exp(decay))                                                the same for all tokens
y = time mix of (x_r, x_k, x_v, x_g, w)                             see rwkv_memory.py

The feed-forward layer behind it is the mixer `rwkv4_channel`. The norm that RWKV has after the
embedding is `model.embedding_norm`.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.linear_memory import check_head_dim
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments
from xlstm_jax.models.rwkv_memory import (
    PROJECTIONS,
    RWKVMemoryConfig,
    RWKVMemoryState,
    decay_init,
    empty_state,
    time_mix,
    time_mix_flops,
)
from xlstm_jax.models.token_shift import TokenMix, share_init, token_shift
from xlstm_jax.typing import Activations

NAME = "rwkv5"


@dataclasses.dataclass(frozen=True)
class RWKV5Config(RWKVMemoryConfig):
    """Settings of RWKV-5's time mix."""


class RWKV5(nn.Module):
    """The mixer; see the top of this file."""

    settings: RWKV5Config
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: RWKVMemoryState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, RWKVMemoryState]:
        depth, segments = self.depth, segments or ONE_DOCUMENT
        memory, last = (None, None) if state is None else state
        before, last = token_shift(x, last, segments)
        inits = {
            "receptance": share_init(depth, exponent=0.5),
            "key": share_init(depth),
            "value": share_init(depth, add=0.3),
            "gate": share_init(depth, exponent=0.5),
        }
        mixtures = TokenMix({name: inits[name] for name in PROJECTIONS}, name="mix")(x, before)
        boxed = nn.with_logical_partitioning(decay_init(depth), ("inner",))
        decay = self.param("decay", boxed, (self.dim,))
        log_decay = jnp.broadcast_to(-jnp.exp(decay), x.shape)
        y, memory = time_mix(self, NAME, mixtures, log_decay, memory, segments)
        return y, RWKVMemoryState(memory, last)


def flops(settings: RWKV5Config, dim: int, context_length: int) -> float:
    """The time mix with four mixtures."""
    return time_mix_flops(settings, dim, mixtures=4)


def check(settings: RWKV5Config, dim: int, parts: Parts) -> None:
    """D must fall into heads, and these into the mesh's parts."""
    check_head_dim(NAME, dim, settings.head_dim, parts)


MIXER = Mixer(
    section=RWKV5Config,
    module=RWKV5,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({*PROJECTIONS, "out_projection"}),
)
