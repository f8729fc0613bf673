"""The paper's mLSTM block (2405.04517, figure 11): matrix memory inside an up-projection.

u, z = up x                            c = SiLU(conv(u))
q = Q c,  k = K c,  v = V u            block-diagonal maps
i, f = gates of (q, k, v)              h = mLSTM(q, k, v, i, f)
y = down((norm(h) + skip * c) * SiLU(z))
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import MLSTMState
from xlstm_jax.errors import UserError
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.cpu_forms import scale_channels, silu
from xlstm_jax.models.initializers import ones, small_init, wang_init
from xlstm_jax.models.layers import (
    BlockDiagonalProjection,
    HeadNorm,
    Projection,
    SplitProjection,
    round_up,
)
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments, check_heads
from xlstm_jax.models.mlstm_back import fused_back
from xlstm_jax.models.mlstm_cell import (
    MLSTMCellConfig,
    cell_flops,
    cell_flops_parallel,
    cell_flops_recurrent,
    cell_flops_tfla,
    check_cell,
    empty_memory,
    gate_weights,
    gates_of,
    matrix_memory,
)
from xlstm_jax.models.mlstm_front import fused_front
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "mlstm"


@dataclasses.dataclass(frozen=True)
class MLSTMConfig(MLSTMCellConfig):
    """Settings of the paper's mLSTM block."""

    up_factor: float = setting(2.0, "inner dimension / D, rounded up to 64", above=0)
    conv_width: int = setting(4, "taps of the causal convolution; 0 leaves it out", at_least=0)
    qkv_block_size: int = setting(
        4, "block size of the block-diagonal q, k, v projections", at_least=1
    )

    def inner_dim(self, dim: int) -> int:
        """I, the channels inside the block."""
        return round_up(self.up_factor * dim)


class MLSTMBlockState(NamedTuple):
    """The cell, and the last inputs of the convolution (None without one)."""

    cell: MLSTMState
    conv: Float[Array, "B W-1 I"] | None


class MLSTM(nn.Module):
    """The mixer; see the top of this file."""

    settings: MLSTMConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: MLSTMBlockState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, MLSTMBlockState]:
        settings, segments = self.settings, segments or ONE_DOCUMENT
        inner, up_init = settings.inner_dim(self.dim), small_init(self.dim)
        cell, window = (None, None) if state is None else state

        up = SplitProjection(2 * inner, ("embed", "inner"), up_init, name="up_projection")(x)
        u, z = (constrain(part, "batch", "time", "inner") for part in up)
        c = u
        if width := settings.conv_width:
            conv = CausalConv(width, name="conv")
            c, window = conv(u, window, segments.ids, segments.previous)
        c = checkpoint_name(silu(c), "conv")
        block_diagonal = functools.partial(
            BlockDiagonalProjection, inner, settings.qkv_block_size, up_init
        )
        maps = [block_diagonal(name=name) for name in ("query", "key", "value")]
        weights = gate_weights(self, settings, 3 * inner)
        q, k, v = fused_front(settings, c, u, maps, weights) or (
            project(x) for project, x in zip(maps, (c, c, u), strict=True)
        )
        gates = gates_of(self, weights, q, k, v)
        h, cell = matrix_memory(settings, q, k, v, gates, cell, segments, NAME)

        skip_init = nn.with_logical_partitioning(ones, ("inner",))
        skip = self.param("skip", skip_init, (inner,)).astype(x.dtype)
        norm = HeadNorm(settings.norm_eps, name="head_norm")
        y = fused_back(settings, h, norm, z, "silu", c, skip)
        if y is None:
            y = (norm(h) + scale_channels(c, skip)) * silu(z)
        down_init = wang_init(self.dim, self.depth.num_blocks)
        y = Projection(self.dim, ("inner", "embed"), down_init, name="down_projection")(y)
        return y, MLSTMBlockState(cell, window)


def empty_state(
    settings: MLSTMConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> MLSTMBlockState:
    """No memory and zeros before the first token."""
    inner, width = settings.inner_dim(dim), settings.conv_width
    window = jnp.zeros((batch_size, width - 1, inner), dtype) if width else None
    cell = empty_memory(batch_size, settings.num_heads, inner, inner, dtype)
    return MLSTMBlockState(cell, window)


def flops(settings: MLSTMConfig, dim: int, context_length: int) -> float:
    """Projections, convolution, gates and cell in chunks."""
    return _projection_flops(settings, dim) + cell_flops(*_heads(settings, dim))


def flops_tfla(settings: MLSTMConfig, dim: int, context_length: int) -> float:
    """In the manner of arXiv 2510.02228 (of another block): the cell as TFLA's repository, and the
    two SiLUs.
    """
    elementary = 2 * settings.inner_dim(dim)
    return _projection_flops(settings, dim) + cell_flops_tfla(*_heads(settings, dim)) + elementary


def flops_parallel(settings: MLSTMConfig, dim: int, context_length: int) -> float:
    """With the cell in the parallel form."""
    cell = cell_flops_parallel(*_heads(settings, dim), context_length)
    return _projection_flops(settings, dim) + cell


def flops_recurrent(settings: MLSTMConfig, dim: int, context_length: int) -> float:
    """With the cell in the recurrent form."""
    return _projection_flops(settings, dim) + cell_flops_recurrent(*_heads(settings, dim))


def _heads(settings: MLSTMConfig, dim: int) -> tuple[int, int, int]:
    inner = settings.inner_dim(dim)
    return settings.num_heads, inner, inner


def _projection_flops(settings: MLSTMConfig, dim: int) -> float:
    """And of the convolution."""
    inner, heads = settings.inner_dim(dim), settings.num_heads
    up_and_down = 2 * dim * 2 * inner + 2 * inner * dim
    query_key_value = 3 * 2 * inner * settings.qkv_block_size
    gates = 2 * 3 * inner * settings.gates_from_text * heads
    conv = 2 * settings.conv_width * inner
    return up_and_down + conv + query_key_value + gates


def check(settings: MLSTMConfig, dim: int, parts: Parts) -> None:
    """The inner dimension must fall into heads, and these into the mesh's parts."""
    check_cell(settings, NAME)
    inner = settings.inner_dim(dim)
    if inner % settings.num_heads or inner % settings.qkv_block_size:
        raise UserError(
            f"the inner dimension {inner} of the mLSTM (model.dim {dim} x model.mlstm.up_factor "
            f"{settings.up_factor}, rounded up to 64) is not divisible by model.mlstm.num_heads "
            f"{settings.num_heads} and model.mlstm.qkv_block_size {settings.qkv_block_size}; "
            "change one of them"
        )
    check_heads(NAME, settings.num_heads, parts)


MIXER = Mixer(
    section=MLSTMConfig,
    module=MLSTM,
    flops=flops,
    empty_state=empty_state,
    check=check,
    # those of q, k and v are multiplied with the gates' kernels first, in float32
    cast=frozenset({"up_projection", "down_projection"}),
    countings={"tfla": flops_tfla, "parallel": flops_parallel, "recurrent": flops_recurrent},
)
