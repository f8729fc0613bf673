"""Causal softmax attention (arXiv 1706.03762) with rotary positions and grouped heads.

q = Q x,  k = K x,  v = V x             H heads of q, G of k and v
q, k turned by their positions          rotary (arXiv 2104.09864), if theta is set
y = out(softmax(q k^T / sqrt(K)) v)     over the tokens of the own document up to this one
"""

import dataclasses
from typing import Any

from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention import AttentionState, rotary
from pallas_kernels.attention.api import BACKENDS
from xlstm_jax.errors import UserError, backend_of
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import Projection, split_heads
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments
from xlstm_jax.parallel.kernels import attention
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Settings of attention."""

    num_heads: int = setting(4, "H, number of heads of the queries", at_least=1)
    num_groups: int | None = setting(
        None, "G, heads of keys and values; unset: as many as queries", at_least=1
    )
    theta: float | None = setting(
        10000.0, "base of the rotary positions; unset: none are added here", above=0
    )
    bias: bool = setting(False, "all projections have a bias")
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )

    @property
    def groups(self) -> int:
        """G."""
        return self.num_groups or self.num_heads


class Attention(nn.Module):
    """The mixer; see the top of this file."""

    settings: AttentionConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: AttentionState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, AttentionState | None]:
        settings, segments = self.settings, segments or ONE_DOCUMENT
        head_dim = self.dim // settings.num_heads

        def heads(name: str, number: int) -> Any:
            projection = Projection(
                number * head_dim,
                ("embed", "heads"),
                small_init(self.dim),
                use_bias=settings.bias,
                name=name,
            )
            return split_heads(projection(x), number)

        q = heads("query", settings.num_heads)
        k, v = heads("key", settings.groups), heads("value", settings.groups)
        if settings.theta is not None:
            positions = segments.positions_of(x.shape[:2])
            q, k = (rotary(part, positions, settings.theta) for part in (q, k))
        q, k, v = (checkpoint_name(part, "qkv") for part in (q, k, v))
        with backend_of("model.attention.backend", settings.backend):
            y, state = attention(
                q,
                k,
                v,
                state,
                segment_ids=segments.ids,
                previous_segment=segments.previous,
                backend=settings.backend,
            )
        out_init = wang_init(self.dim, self.depth.num_blocks)
        out = Projection(
            self.dim, ("heads", "embed"), out_init, use_bias=settings.bias, name="out_projection"
        )
        return out(y.reshape(x.shape)), state


def empty_state(
    settings: AttentionConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> AttentionState:
    """Room for the keys and values of `cache_length` tokens."""
    head_dim = dim // settings.num_heads
    return AttentionState.empty(
        batch_size, cache_length, settings.groups, head_dim, head_dim, dtype
    )


def flops(settings: AttentionConfig, dim: int, context_length: int) -> float:
    """Projections, and scores and sums over the half of the context that is visible on average."""
    return _projection_flops(settings, dim) + 2 * 2 * dim * (context_length + 1) / 2


def flops_full(settings: AttentionConfig, dim: int, context_length: int) -> float:
    """With scores, softmax (3 per entry) and sums over the whole context, as if nothing were masked
    (Hoffmann et al. 2022).
    """
    square = (2 * 2 * dim + 3 * settings.num_heads) * context_length
    return _projection_flops(settings, dim) + square


def flops_distill_scaling(settings: AttentionConfig, dim: int, context_length: int) -> float:
    """As arXiv 2510.02228 counts in its mode "distill_scaling": half of the scores and sums, and
    2.5 per entry of the whole square for the softmax.
    """
    square = (2 * dim + 2.5 * settings.num_heads) * context_length
    return _projection_flops(settings, dim) + square


def _projection_flops(settings: AttentionConfig, dim: int) -> float:
    groups = dim * settings.groups // settings.num_heads
    return 2 * dim * (2 * dim + 2 * groups)


def check(settings: AttentionConfig, dim: int, parts: Parts) -> None:
    """D must fall into heads, these into groups, both into the mesh's parts."""
    heads, groups = settings.num_heads, settings.groups
    if dim % heads or (settings.theta is not None and dim // heads % 2):
        even = (
            " into heads of an even size, which rotary positions need," if dim % heads == 0 else ""
        )
        raise UserError(
            f"config key model.dim is {dim}, which does not fall{even} into "
            f"model.attention.num_heads {heads}; use a multiple of it"
        )
    if heads % groups:
        raise UserError(
            f"config key model.attention.num_groups is {groups}, which does not divide "
            f"model.attention.num_heads {heads}; use a divisor of it"
        )
    if groups % parts.tensor:
        raise UserError(
            f"config key mesh.tensor is {parts.tensor}, which does not divide the {groups} groups "
            "of model.attention; use a divisor of them"
        )
    if parts.sequence != 1:
        raise UserError(
            f"config key mesh.sequence is {parts.sequence}, but the model has attention, whose "
            "time is not spread over devices here; use mesh.sequence 1"
        )


MIXER = Mixer(
    section=AttentionConfig,
    module=Attention,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"query", "key", "value", "out_projection"}),
    grows=True,
    countings={
        "causal": flops,
        "full": flops_full,
        "distill_scaling": flops_distill_scaling,
    },
)
