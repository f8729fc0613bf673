"""The time mix of RWKV-6 (x060, "Finch", arXiv 2404.05892): a matrix state whose decays
and mixtures with the token before depend on the text.

z = x_t + mu (x_{t-1} - x_t)                                      per channel
x_i = x_t + (mu_i + tanh(z A_i) B_i) (x_{t-1} - x_t)              i = w, k, v, r, g; 32 channels
w = exp(-exp(decay + tanh(x_w A) B))                              through 64 channels
y = time mix of (x_r, x_k, x_v, x_g, w)                           see rwkv_memory.py

The feed-forward layer behind it is the mixer `rwkv4_channel`. The norm that RWKV has after the
embedding is `model.embedding_norm`.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.cpu_forms import along_tokens
from xlstm_jax.models.initializers import Initializer, uniform, zeros
from xlstm_jax.models.layers import LowRankProjection
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
from xlstm_jax.models.token_shift import mix, share_init, token_shift
from xlstm_jax.parallel import gathered
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations

NAME = "rwkv6"
SPREAD = 1e-2  # the low-rank kernels next to their outputs start in +-SPREAD, the others at 0


@dataclasses.dataclass(frozen=True)
class RWKV6Config(RWKVMemoryConfig):
    """Settings of RWKV-6's time mix; the defaults are the authors'."""

    mix_rank: int = setting(32, "channels that each mixture is computed through", at_least=1)
    decay_rank: int = setting(64, "channels that the decays are computed through", at_least=1)


class TextDependentMix(nn.Module):
    """x_i for the decays and for `PROJECTIONS`. The parameters are shares of the token before.

    Attributes:
        rank: channels between.
        dim, depth: as in the mixer.
    """

    rank: int
    dim: int
    depth: Depth

    @nn.compact
    def __call__(self, x: Activations, before: Activations) -> list[Activations]:
        of_present = {
            "all": share_init(self.depth),
            "decay": share_init(self.depth),
            "receptance": share_init(self.depth, exponent=0.5),
            "key": share_init(self.depth),
            "value": share_init(self.depth, add=0.3),
            "gate": share_init(self.depth, exponent=0.5),
        }
        of_all, *shares = (
            gathered(
                self.param(
                    name, nn.with_logical_partitioning(_rest(init), ("embed",)), (self.dim,)
                ),
                "embed",
            )
            for name, init in of_present.items()
        )
        moves = LowRankProjection(
            self.dim,
            self.rank,
            axis="embed",
            down_init=zeros,
            up_init=uniform(SPREAD),
            activation=jnp.tanh,
            parts=len(shares),
            name="low_rank",
        )(mix(before, x, of_all))
        return [
            x + (before - x) * (along_tokens(share, x.shape[:2]) + move).astype(x.dtype)
            for share, move in zip(shares, moves, strict=True)
        ]


def _rest(init: Initializer) -> Initializer:
    """One minus the values of another initializer."""
    return lambda key, shape, dtype=jnp.float32: 1 - init(key, shape, dtype)


class RWKV6(nn.Module):
    """The mixer; see the top of this file."""

    settings: RWKV6Config
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: RWKVMemoryState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, RWKVMemoryState]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        memory, last = (None, None) if state is None else state
        before, last = token_shift(x, last, segments)
        for_decay, *mixtures = TextDependentMix(settings.mix_rank, dim, self.depth, name="mix")(
            x, before
        )
        (move,) = LowRankProjection(
            dim,
            settings.decay_rank,
            axis="heads",
            down_init=zeros,
            up_init=uniform(SPREAD),
            activation=jnp.tanh,
            name="decay_low_rank",
        )(for_decay)
        boxed = nn.with_logical_partitioning(decay_init(self.depth), ("inner",))
        log_decay = -jnp.exp(along_tokens(self.param("decay", boxed, (dim,)), x.shape[:2]) + move)
        y, memory = time_mix(self, NAME, mixtures, log_decay, memory, segments)
        return y, RWKVMemoryState(memory, last)


def flops(settings: RWKV6Config, dim: int, context_length: int) -> float:
    """The time mix with six mixtures, and the low-rank maps."""
    low_rank = 2 * 2 * dim * (5 * settings.mix_rank + settings.decay_rank)
    return time_mix_flops(settings, dim, mixtures=6) + low_rank


def check(settings: RWKV6Config, dim: int, parts: Parts) -> None:
    """D must fall into heads, and these into the mesh's parts."""
    check_head_dim(NAME, dim, settings.head_dim, parts)


MIXER = Mixer(
    section=RWKV6Config,
    module=RWKV6,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({*PROJECTIONS, "down", "up", "out_projection"}),
)
