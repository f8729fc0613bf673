"""What the time mixes of RWKV-5 and RWKV-6 share (arXiv 2404.05892): all but
the mixtures with the token before and the decays.

r = R x_r,  k = K x_k,  v = V x_v,  g = G x_g              x_r, ... mixtures of x_t and x_{t-1}
o_t = r_t (S_{t-1} + diag(u) k_t^T v_t)                    per head of 64 channels, u = bonus
S_t = diag(w_t) S_{t-1} + k_t^T v_t                        w decays of the key channels
y = out(norm(o) * SiLU(g))                                 layer norm of each head
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import LinearAttentionState
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import Initializer, small_init, wang_init
from xlstm_jax.models.layers import HeadNorm, Projection, split_heads
from xlstm_jax.models.linear_memory import (
    LinearMemoryConfig,
    empty_memory,
    linear_memory,
    memory_flops,
)
from xlstm_jax.models.mixer import Depth, Segments
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

PROJECTIONS = ("receptance", "key", "value", "gate")


@dataclasses.dataclass(frozen=True)
class RWKVMemoryConfig(LinearMemoryConfig):
    """Settings of the memory; the defaults are the authors'.

    RWKV-5's code divides o by 8 before a norm with 1e-5; that is a norm with 64e-5.
    """

    norm_eps: float = setting(64e-5, "added to the variance in the norm of each head", at_least=0)
    head_dim: int = setting(64, "channels of a head, each of which remembers as many", at_least=1)


class RWKVMemoryState(NamedTuple):
    """The memory, and the last token."""

    memory: LinearAttentionState
    last: Float[Array, "B D"]


def time_mix(
    module: nn.Module,
    name: str,
    mixtures: Sequence[Activations],
    log_decay: Float[Array, "B T D"],
    memory: LinearAttentionState | None,
    segments: Segments,
) -> tuple[Activations, LinearAttentionState]:
    """y of the mixer `name`, and the memory after the last token.

    mixtures are those for `PROJECTIONS`. The parameters belong to the module that calls it.
    """
    settings, dim, depth = module.settings, module.dim, module.depth
    heads, init, axes = dim // settings.head_dim, small_init(dim), ("embed", "heads")
    r, k, v, g = (
        Projection(dim, axes, init, name=part, parent=module)(x)
        for part, x in zip(PROJECTIONS, mixtures, strict=True)
    )
    bonus_init = nn.with_logical_partitioning(_bonus_init(depth), ("inner",))
    bonus = module.param("bonus", bonus_init, (dim,)).reshape(heads, -1)
    by_head = (split_heads(part, heads) for part in (r, k, v, log_decay))
    o, memory = linear_memory(settings, name, *by_head, memory, segments, bonus)
    y = HeadNorm(settings.norm_eps, use_bias=True, name="head_norm", parent=module)(o) * silu(g)
    out_init = wang_init(dim, depth.num_blocks)
    out = Projection(dim, ("heads", "embed"), out_init, name="out_projection", parent=module)
    return out(y), memory


def decay_init(depth: Depth) -> Initializer:
    """-6 + 5 (d/(D-1))^(0.7 + 1.3 block/(blocks-1)) for channel d, as in the authors' code."""

    def init(key, shape, dtype=jnp.float32):
        channel = jnp.arange(shape[0], dtype=dtype) / max(shape[0] - 1, 1)
        return -6 + 5 * channel ** (0.7 + 1.3 * _lateness(depth, dtype))

    return init


def _bonus_init(depth: Depth) -> Initializer:
    """block/(blocks-1) (1 - d/(D-1)) plus 0, 1/10, -1/10 in turn, as in the authors' code."""

    def init(key, shape, dtype=jnp.float32):
        channel = jnp.arange(shape[0], dtype=dtype)
        zigzag = ((channel + 1) % 3 - 1) / 10
        return _lateness(depth, dtype) * (1 - channel / max(shape[0] - 1, 1)) + zigzag

    return init


def _lateness(depth: Depth, dtype: Any) -> Float[Array, ""]:
    """0 in the first block, 1 in the last."""
    return jnp.asarray(depth.index, dtype) / max(depth.num_blocks - 1, 1)


def empty_state(
    settings: RWKVMemoryConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> RWKVMemoryState:
    """No memory and zeros before the first token."""
    memory = empty_memory(batch_size, dim // settings.head_dim, dim, dim, dtype)
    return RWKVMemoryState(memory, jnp.zeros((batch_size, dim), dtype))


def time_mix_flops(settings: RWKVMemoryConfig, dim: int, mixtures: int) -> float:
    """Projections, memory with its bonus (5 per channel), 3 per channel of each mixture."""
    memory = memory_flops(dim // settings.head_dim, dim, dim)
    return 2 * 5 * dim * dim + memory + (5 + 3 * mixtures) * dim
