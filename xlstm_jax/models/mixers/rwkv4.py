"""The time mix of RWKV-4 (arXiv 2305.13048, section 3.1): averages of values that decay.

x_k = mu_k x_t + (1 - mu_k) x_{t-1},  x_v and x_r likewise           per channel
k = K x_k,  v = V x_v,  r = R x_r                                    w = exp(-exp(decay))
wkv_t = (N_{t-1} + e^{u + k_t} v_t) / (D_{t-1} + e^{u + k_t})        u = bonus
N_t = w N_{t-1} + e^{k_t} v_t,  D_t = w D_{t-1} + e^{k_t}
y = out(sigmoid(r) * wkv)

The feed-forward layer behind it is the mixer `rwkv4_channel`. The norm that RWKV has after the
embedding is `model.embedding_norm`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.elementwise_scan import AverageState, decayed_average
from pallas_kernels.elementwise_scan.chunks import BACKENDS
from xlstm_jax.errors import backend_of
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
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "rwkv4"


@dataclasses.dataclass(frozen=True)
class RWKV4Config:
    """Settings of RWKV-4's time mix."""

    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )
    chunk_size: int | None = setting(
        None, "L, tokens between two kept states; unset: the backend's", at_least=1, may_change=True
    )


class RWKV4State(NamedTuple):
    """The averages, and the last token."""

    average: AverageState
    last: Float[Array, "B D"]


class RWKV4(nn.Module):
    """The mixer; see the top of this file."""

    settings: RWKV4Config
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: RWKV4State | None = None, segments: Segments | None = None
    ) -> tuple[Activations, RWKV4State]:
        settings, dim, depth = self.settings, self.dim, self.depth
        segments = segments or ONE_DOCUMENT
        average, last = (None, None) if state is None else state

        before, last = token_shift(x, last, segments)
        inits = {
            "key": share_init(depth),
            "value": share_init(depth, add=0.3),
            "receptance": share_init(depth, exponent=0.5),
        }
        k, v, r = (
            constrain(
                Projection(dim, ("embed", "inner"), small_init(dim), name=name)(mixed),
                *("batch", "time", "inner"),
            )
            for name, mixed in zip(inits, TokenMix(inits, name="mix")(x, before), strict=True)
        )
        axis = ("inner",)
        decay = self.param("decay", nn.with_logical_partitioning(_decay_init(depth), axis), (dim,))
        bonus = self.param("bonus", nn.with_logical_partitioning(_bonus_init, axis), (dim,))
        with backend_of(f"model.{NAME}.backend", settings.backend):
            wkv, average = decayed_average(
                k,
                v,
                -jnp.exp(decay),
                bonus,
                average,
                segment_ids=segments.ids,
                previous_segment=segments.previous,
                chunk_size=settings.chunk_size,
                # one token is always the decode step
                backend=settings.backend if x.shape[1] > 1 else None,
            )
        y = jax.nn.sigmoid(r) * constrain(wkv, "batch", "time", "inner")
        out_init = wang_init(dim, depth.num_blocks)
        out = Projection(dim, ("inner", "embed"), out_init, name="out_projection")
        return out(y), RWKV4State(average, last)


def _decay_init(depth: Depth):
    """-5 + 8 (d/(D-1))^(0.7 + 1.3 block/(blocks-1)) for channel d, as in the authors' code."""

    def init(key, shape, dtype=jnp.float32):
        late = jnp.asarray(depth.index, dtype) / max(depth.num_blocks - 1, 1)
        channel = jnp.arange(shape[0], dtype=dtype) / max(shape[0] - 1, 1)
        return -5 + 8 * channel ** (0.7 + 1.3 * late)

    return init


def _bonus_init(key, shape, dtype=jnp.float32) -> Float[Array, " D"]:
    """log 0.3, and 0, 1/2, -1/2 in turn, as in the authors' code."""
    zigzag = (jnp.arange(1, shape[0] + 1) % 3 - 1) / 2
    return (math.log(0.3) + zigzag).astype(dtype)


def empty_state(
    settings: RWKV4Config, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> RWKV4State:
    """No average and zeros before the first token."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return RWKV4State(
        AverageState.empty(batch_size, dim, wide), jnp.zeros((batch_size, dim), dtype)
    )


def flops(settings: RWKV4Config, dim: int, context_length: int) -> float:
    """Projections, mixtures and averages.

    Per channel: 3 for each of three mixtures; 12 for an output (3 sums and a maximum, 2
    exponentials, 5 for numerator and denominator, the quotient), 11 for the state, 2 for the
    receptance.
    """
    return 2 * 4 * dim * dim + (9 + 12 + 11 + 2) * dim


def check(settings: RWKV4Config, dim: int, parts: Parts) -> None:
    """The time can't be spread."""
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=RWKV4Config,
    module=RWKV4,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"key", "value", "receptance", "out_projection"}),
)
