"""The matrix memory of xLSTM 7B (arXiv 2503.13427, figure 8): dense projections, no convolution.

q = Q x,  k = K x,  v = V x,  o = O x          i, f = gates of x
y = out(norm(mLSTM(q, k, v, i, f)) * sigmoid(o))
"""

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import MLSTMState
from xlstm_jax.errors import UserError
from xlstm_jax.models.initializers import small_init, wang_init, zeros
from xlstm_jax.models.layers import HeadNorm, Kernel, Projection, project_together
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
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations

NAME = "mlstm_7b"


@dataclasses.dataclass(frozen=True)
class MLSTM7BConfig(MLSTMCellConfig):
    """Settings of the mLSTM of xLSTM 7B; the defaults are those of its code."""

    num_heads: int = setting(8, "H, number of heads", at_least=1)
    qk_factor: float = setting(0.5, "query/key dimension / D", above=0)
    input_gate_bias: float = setting(-10.0, "mean of the input gate's initial bias")
    input_gate_bias_std: float = setting(0.0, "its standard deviation", at_least=0)
    gate_soft_cap: float | None = setting(15.0, "gates become a tanh(x / a)", above=0)
    norm_eps: float = setting(1e-6, "added to the variance in the norm of each head", at_least=0)

    def qk_dim(self, dim: int) -> int:
        """Query/key dimension over all heads."""
        return int(self.qk_factor * dim)


class MLSTM7B(nn.Module):
    """The mixer; see the top of this file."""

    settings: MLSTM7BConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: MLSTMState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, MLSTMState]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        init, axes = small_init(dim), ("embed", "heads")
        keys = settings.qk_dim(dim)
        maps = (("query", keys, init), ("key", keys, init), ("value", dim, init))
        q, k, v, o = project_together(
            x,
            [
                Kernel(features, axes, start, name=name)
                for name, features, start in (*maps, ("output_gate", dim, zeros))
            ],
        )
        o = checkpoint_name(o, "qkv")
        gates = gates_of(self, gate_weights(self, settings, dim), x)
        h, state = matrix_memory(settings, q, k, v, gates, state, segments, NAME)
        norm = HeadNorm(settings.norm_eps, name="head_norm")
        y = fused_back(settings, h, norm, o, "sigmoid")
        if y is None:
            y = norm(h) * jax.nn.sigmoid(o)
        out_init = wang_init(dim, self.depth.num_blocks)
        return Projection(dim, ("heads", "embed"), out_init, name="out_projection")(y), state


def empty_state(
    settings: MLSTM7BConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> MLSTMState:
    """No memory."""
    return empty_memory(batch_size, settings.num_heads, settings.qk_dim(dim), dim, dtype)


def flops(settings: MLSTM7BConfig, dim: int, context_length: int) -> float:
    """Projections, gates and cell in chunks."""
    return _projection_flops(settings, dim) + cell_flops(*_heads(settings, dim))


def flops_tfla(settings: MLSTM7BConfig, dim: int, context_length: int) -> float:
    """As arXiv 2510.02228 counts: the cell as TFLA's repository, and the output gate's sigmoid."""
    return _projection_flops(settings, dim) + cell_flops_tfla(*_heads(settings, dim)) + dim


def flops_parallel(settings: MLSTM7BConfig, dim: int, context_length: int) -> float:
    """With the cell in the parallel form."""
    cell = cell_flops_parallel(*_heads(settings, dim), context_length)
    return _projection_flops(settings, dim) + cell


def flops_recurrent(settings: MLSTM7BConfig, dim: int, context_length: int) -> float:
    """With the cell in the recurrent form."""
    return _projection_flops(settings, dim) + cell_flops_recurrent(*_heads(settings, dim))


def _projection_flops(settings: MLSTM7BConfig, dim: int) -> float:
    gates = settings.gates_from_text * settings.num_heads
    return 2 * dim * (2 * settings.qk_dim(dim) + dim + gates) + 2 * 2 * dim * dim


def _heads(settings: MLSTM7BConfig, dim: int) -> tuple[int, int, int]:
    return settings.num_heads, settings.qk_dim(dim), dim


def check(settings: MLSTM7BConfig, dim: int, parts: Parts) -> None:
    """Both dimensions must fall into heads, and these into the mesh's parts."""
    check_cell(settings, NAME)
    keys, heads = settings.qk_dim(dim), settings.num_heads
    if keys % heads or dim % heads:
        raise UserError(
            f"model.dim {dim} and the query/key dimension {keys} (model.dim x "
            f"model.mlstm_7b.qk_factor {settings.qk_factor}) are not both divisible by "
            f"model.mlstm_7b.num_heads {heads}; change one of them"
        )
    check_heads(NAME, heads, parts)


MIXER = Mixer(
    section=MLSTM7BConfig,
    module=MLSTM7B,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"query", "key", "value", "output_gate", "out_projection"}),
    countings={"tfla": flops_tfla, "parallel": flops_parallel, "recurrent": flops_recurrent},
)
