"""Gated linear attention (arXiv 2312.06635, section 4.4): a matrix state that forgets by channel.

q = Q x / sqrt(K),  k = K x,  v = V x,  g = G x        K = D/2 and V = D over all heads
a = sigmoid(B A x + b)^(1/16)                          in each key channel, through 16 channels
S_t = diag(a_t) S_{t-1} + k_t^T v_t,  o_t = q_t S_t    per head
y = out(norm(o) * SiLU(g))                             root-mean-square norm of each head
"""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from pallas_kernels import LinearAttentionState
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import small_init, wang_init, zeros
from xlstm_jax.models.layers import HeadNorm, LowRankProjection, Projection, split_heads
from xlstm_jax.models.linear_memory import (
    LinearMemoryConfig,
    check_memory,
    empty_memory,
    linear_memory,
    memory_flops,
)
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments
from xlstm_jax.parallel import gathered
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations

NAME = "gla"


@dataclasses.dataclass(frozen=True)
class GLAConfig(LinearMemoryConfig):
    """Settings of gated linear attention; the defaults are those of the paper."""

    num_heads: int = setting(4, "H, number of heads", at_least=1)
    key_factor: float = setting(0.5, "query/key dimension / D", above=0)
    gate_rank: int = setting(16, "channels that the forget gate is computed through", at_least=1)
    gate_temperature: float = setting(
        16.0, "the forget gate is sigmoid^(1/a), the nearer to 1 the larger a", above=0
    )

    def key_dim(self, dim: int) -> int:
        """Query/key dimension over all heads."""
        return int(self.key_factor * dim)


class GLA(nn.Module):
    """The mixer; see the top of this file."""

    settings: GLAConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: LinearAttentionState | None = None,
        segments: Segments | None = None,
    ) -> tuple[Activations, LinearAttentionState]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        heads, keys = settings.num_heads, settings.key_dim(dim)
        init, axes = small_init(dim), ("embed", "heads")
        q = Projection(keys, axes, init, name="query")(x) * (keys // heads) ** -0.5
        k = Projection(keys, axes, init, name="key")(x)
        v = Projection(dim, axes, init, name="value")(x)
        g = Projection(dim, axes, init, name="output_gate")(x)
        low_rank = LowRankProjection(
            keys,
            settings.gate_rank,
            axis="heads",
            down_init=init,
            up_init=small_init(settings.gate_rank),
            name="forget_gate",
        )
        bias_init = nn.with_logical_partitioning(zeros, ("heads",))
        bias = gathered(self.param("forget_gate_bias", bias_init, (keys,)), "heads")
        log_decay = jax.nn.log_sigmoid(low_rank(x)[0] + bias) / settings.gate_temperature
        by_head = (split_heads(part, heads) for part in (q, k, v, log_decay))
        o, state = linear_memory(settings, NAME, *by_head, state, segments)
        norm = HeadNorm(settings.norm_eps, center=False, one_scale=True, name="head_norm")
        y = norm(o) * silu(g)
        out_init = wang_init(dim, self.depth.num_blocks)
        return Projection(dim, ("heads", "embed"), out_init, name="out_projection")(y), state


def empty_state(
    settings: GLAConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> LinearAttentionState:
    """No memory."""
    return empty_memory(batch_size, settings.num_heads, settings.key_dim(dim), dim, dtype)


def flops(settings: GLAConfig, dim: int, context_length: int) -> float:
    """Projections, forget gate and memory."""
    keys = settings.key_dim(dim)
    projections = 2 * dim * (2 * keys + 3 * dim)
    gate = 2 * settings.gate_rank * (dim + keys)
    return projections + gate + memory_flops(settings.num_heads, keys, dim)


def check(settings: GLAConfig, dim: int, parts: Parts) -> None:
    """Both dimensions must fall into heads, and these into the mesh's parts."""
    check_memory(NAME, (settings.key_dim(dim), dim), settings.num_heads, parts)


MIXER = Mixer(
    section=GLAConfig,
    module=GLA,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"query", "key", "value", "output_gate", "down", "up", "out_projection"}),
)
