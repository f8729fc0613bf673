"""HGRN2 (arXiv 2404.07904): a matrix state whose keys are what its forget gates let go.

q = SiLU(Q x),  i = I x
f = bound + (1 - bound) sigmoid(F x)                       bound by layer (lower_bounds.py)
S_t = diag(f_t) S_{t-1} + (1 - f_t)^T i_t,  o_t = q_t S_t  per head of 128 channels
y = out(norm(o))                                           root-mean-square norm of all channels
"""

import dataclasses
from typing import Any

from flax import linen as nn

from pallas_kernels import LinearAttentionState
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import HeadNorm, Projection, split_heads
from xlstm_jax.models.linear_memory import (
    LinearMemoryConfig,
    check_head_dim,
    empty_memory,
    linear_memory,
    memory_flops,
)
from xlstm_jax.models.lower_bounds import LowerBounds, bounded_forget_gate
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "hgrn2"


@dataclasses.dataclass(frozen=True)
class HGRN2Config(LinearMemoryConfig):
    """Settings of HGRN2; the defaults are those of the paper."""

    head_dim: int = setting(128, "channels of a head, each of which remembers as many", at_least=1)


class HGRN2(nn.Module):
    """The mixer; see the top of this file."""

    settings: HGRN2Config
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: LinearAttentionState | None = None,
        segments: Segments | None = None,
        *,
        share: Float[Array, " D"],
    ) -> tuple[Activations, LinearAttentionState]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        heads, init, axes = dim // settings.head_dim, small_init(dim), ("embed", "heads")
        q = silu(Projection(dim, axes, init, name="query")(x))
        z = Projection(dim, axes, init, name="forget_gate")(x)
        i = Projection(dim, axes, init, name="input")(x)
        log_f, closed = bounded_forget_gate(z, share)
        by_head = (split_heads(part, heads) for part in (q, closed.astype(x.dtype), i, log_f))
        o, state = linear_memory(settings, NAME, *by_head, state, segments)
        y = o.reshape(*x.shape[:2], 1, dim)  # the norm's one head
        y = HeadNorm(settings.norm_eps, center=False, name="norm")(y)
        out_init = wang_init(dim, self.depth.num_blocks)
        return Projection(dim, ("heads", "embed"), out_init, name="out_projection")(y), state


def empty_state(
    settings: HGRN2Config, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> LinearAttentionState:
    """No memory."""
    return empty_memory(batch_size, dim // settings.head_dim, dim, dim, dtype)


def flops(settings: HGRN2Config, dim: int, context_length: int) -> float:
    """Projections and memory."""
    return 2 * 4 * dim * dim + memory_flops(dim // settings.head_dim, dim, dim)


def check(settings: HGRN2Config, dim: int, parts: Parts) -> None:
    """D must fall into heads, and these into the mesh's parts."""
    check_head_dim(NAME, dim, settings.head_dim, parts)


MIXER = Mixer(
    section=HGRN2Config,
    module=HGRN2,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"query", "forget_gate", "input", "out_projection"}),
    stack=LowerBounds,
)
