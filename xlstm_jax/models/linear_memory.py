"""What the mixers with a linearly decaying matrix state share: settings, the call, its FLOPs.

S_t = diag(a_t) S_{t-1} + k_t^T v_t,  o_t = q_t S_t    (`pallas_kernels.linear_attention`)
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import LinearAttentionState
from pallas_kernels.linear_attention.api import BACKENDS
from xlstm_jax.errors import UserError, backend_of
from xlstm_jax.models.mixer import Parts, Segments, check_whole_time
from xlstm_jax.parallel.kernels import linear_attention
from xlstm_jax.settings import setting
from xlstm_jax.typing import Array, Float, HeadActivations

CHUNK_LENGTH = 64  # at which FLOPs are counted


@dataclasses.dataclass(frozen=True)
class LinearMemoryConfig:
    """Settings of the memory and of the norm behind it."""

    norm_eps: float = setting(
        1e-5, "added to the mean square in the norm of its output", at_least=0
    )
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )
    chunk_size: int | None = setting(
        None,
        "tokens that are read at once, rounded up to a power of two; unset leaves it to the op",
        at_least=1,
        may_change=True,
    )


def linear_memory(
    settings: LinearMemoryConfig,
    name: str,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: HeadActivations,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"],
    state: LinearAttentionState | None,
    segments: Segments,
    bonus: Float[Array, "H K"] | None = None,
) -> tuple[HeadActivations, LinearAttentionState]:
    """`linear_attention` with the settings of the mixer `name`."""
    q, k, v = (checkpoint_name(part, "qkv") for part in (q, k, v))
    with backend_of(f"model.{name}.backend", settings.backend):
        return linear_attention(
            q,
            k,
            v,
            log_decay,
            state,
            bonus=bonus,
            segment_ids=segments.ids,
            previous_segment=segments.previous,
            chunk_size=settings.chunk_size,
            # one token is always the decode step
            backend=settings.backend if q.shape[1] > 1 else None,
        )


def empty_memory(
    batch_size: int, num_heads: int, key_dim: int, value_dim: int, dtype: Any
) -> LinearAttentionState:
    """The empty state of so many channels over all heads, in float32 or better."""
    key_dim, value_dim = key_dim // num_heads, value_dim // num_heads
    dtype = jnp.promote_types(dtype, jnp.float32)
    return LinearAttentionState.empty(batch_size, num_heads, key_dim, value_dim, dtype)


def memory_flops(num_heads: int, key_dim: int, value_dim: int, length: int = CHUNK_LENGTH) -> float:
    """Forward FLOPs of one token over all heads in the chunkwise form at this chunk length.

    Per head: half a square of products q k, a square of weights times v, reading the state and
    writing to it, and the state's decay once per chunk.
    """
    k, v = key_dim // num_heads, value_dim // num_heads
    return num_heads * (length * k + 2 * length * v + 4 * k * v + k * v / length)


def check_memory(name: str, dims: tuple[int, ...], num_heads: int, parts: Parts) -> None:
    """Refuses dimensions that do not fall into the heads of the mixer `name`, and a mesh over which
    these can't be spread or that spreads the time.
    """
    for dim in dims:
        if dim % num_heads:
            raise UserError(
                f"{dim} channels of the mixer {name!r} do not fall into model.{name}.num_heads "
                f"{num_heads}; use a divisor of them, or change model.dim"
            )
    _check_spread(name, f"model.{name}.num_heads {num_heads}", num_heads, parts)


def check_head_dim(name: str, dim: int, head_dim: int, parts: Parts) -> None:
    """`check_memory` for mixers whose heads have a fixed size."""
    if dim % head_dim:
        raise UserError(
            f"config key model.dim is {dim}, no multiple of model.{name}.head_dim {head_dim}; "
            "change one of them"
        )
    heads = dim // head_dim
    _check_spread(name, f"the {heads} heads of model.{name}", heads, parts)


def _check_spread(name: str, heads: str, num_heads: int, parts: Parts) -> None:
    if num_heads % parts.tensor:
        raise UserError(
            f"config key mesh.tensor is {parts.tensor}, which does not divide {heads}; use a "
            f"divisor of them"
        )
    check_whole_time(name, parts)
