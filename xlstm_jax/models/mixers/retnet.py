"""Retention (RetNet, arXiv 2307.08621, section 2): a matrix state with one fixed decay per head.

q = Q x / sqrt(K),  k = K x,  v = V x,  g = G x        D channels of q and k, 2 D of v and g
q, k turned by their positions                         rotary (arXiv 2104.09864)
S_t = a S_{t-1} + k_t^T v_t,  o_t = q_t S_t            a = 1 - 2^(-5-h) in head h = 0, 1, ...
y = out(norm(o) * SiLU(g))                             root-mean-square norm of each head
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import LinearAttentionState, rotary
from xlstm_jax.errors import UserError
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import HeadNorm, Projection, split_heads
from xlstm_jax.models.linear_memory import (
    LinearMemoryConfig,
    check_memory,
    empty_memory,
    linear_memory,
    memory_flops,
)
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "retnet"


@dataclasses.dataclass(frozen=True)
class RetNetConfig(LinearMemoryConfig):
    """Settings of retention."""

    num_heads: int = setting(4, "H, number of heads", at_least=1)
    key_factor: float = setting(1.0, "query/key dimension / D", above=0)
    value_factor: float = setting(2.0, "value dimension / D", above=0)
    theta: float | None = setting(
        10000.0, "base of the rotary positions; unset: there are none", above=0
    )

    def dims(self, dim: int) -> tuple[int, int]:
        """Dimension of queries and keys, and of values, over all heads."""
        return int(self.key_factor * dim), int(self.value_factor * dim)


def log_decays(num_heads: int, dtype: Any) -> Float[Array, " H"]:
    """log(1 - 2^(-5-h))."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(num_heads, dtype=dtype))))


class RetNet(nn.Module):
    """The mixer; see the top of this file."""

    settings: RetNetConfig
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
        heads, (keys, values) = settings.num_heads, settings.dims(dim)
        init, axes = small_init(dim), ("embed", "heads")
        q = split_heads(Projection(keys, axes, init, name="query")(x), heads)
        k = split_heads(Projection(keys, axes, init, name="key")(x), heads)
        v = split_heads(Projection(values, axes, init, name="value")(x), heads)
        g = Projection(values, axes, init, name="output_gate")(x)
        if settings.theta is not None:
            positions = segments.positions_of(x.shape[:2])
            q, k = (rotary(part, positions, settings.theta) for part in (q, k))
        decay = log_decays(heads, jnp.promote_types(x.dtype, jnp.float32))
        decay = jnp.broadcast_to(decay, (*x.shape[:2], heads))
        q = q * q.shape[-1] ** -0.5
        o, state = linear_memory(settings, NAME, q, k, v, decay, state, segments)
        norm = HeadNorm(settings.norm_eps, center=False, one_scale=True, name="head_norm")
        y = norm(o) * silu(g)
        out_init = wang_init(dim, self.depth.num_blocks)
        return Projection(dim, ("heads", "embed"), out_init, name="out_projection")(y), state


def empty_state(
    settings: RetNetConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> LinearAttentionState:
    """No memory."""
    return empty_memory(batch_size, settings.num_heads, *settings.dims(dim), dtype)


def flops(settings: RetNetConfig, dim: int, context_length: int) -> float:
    """Projections and memory."""
    keys, values = settings.dims(dim)
    return 2 * dim * (2 * keys + 3 * values) + memory_flops(settings.num_heads, keys, values)


def check(settings: RetNetConfig, dim: int, parts: Parts) -> None:
    """Both dimensions must fall into heads, these into the mesh's parts, and queries into pairs."""
    keys, values = settings.dims(dim)
    check_memory(NAME, (keys, values), settings.num_heads, parts)
    if settings.theta is not None and keys // settings.num_heads % 2:
        raise UserError(
            f"{keys} channels of queries in model.{NAME}.num_heads {settings.num_heads} make heads "
            "of an odd size, of which rotary positions can make no pairs; change model.dim, "
            f"model.{NAME}.num_heads or model.{NAME}.key_factor, or unset model.{NAME}.theta"
        )


MIXER = Mixer(
    section=RetNetConfig,
    module=RetNet,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"query", "key", "value", "output_gate", "out_projection"}),
)
