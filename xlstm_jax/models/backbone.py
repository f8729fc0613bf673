"""The stack of residual blocks: runs of equal blocks are scanned, states are explicit."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.segments import last_segment
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import inner_dim, qk_dim
from xlstm_jax.models.layers import LayerNorm, RMSNorm
from xlstm_jax.models.mlstm_blocks import MLSTMBlock, MLSTMBlock7B, MLSTMBlockState, init_mlstm_state
from xlstm_jax.models.slstm_block import SLSTMBlock, SLSTMBlockState, init_slstm_state
from xlstm_jax.parallel import compute_dtype
from xlstm_jax.typing import Activations, Array, Int, SegmentIds

# A stack of at most so many blocks is compiled without loops: it costs little time, and the loop's stacked intermediates cost more (a
# training step of 4 blocks at D 256 on a CPU: 5,130 tokens/s instead of 4,050).
SMALL_STACK = 4

BLOCKS = {"mlstm": MLSTMBlock, "slstm": SLSTMBlock, "mlstm_7b": MLSTMBlock7B}


class BackboneState(NamedTuple):
    """What the stack remembers of a sequence.

    Attributes:
        blocks: per run of equal blocks (by parameter name) the blocks' states, stacked on a leading axis.
        segment: id of the document that the states belong to; -1 before the first.
    """

    blocks: Mapping[str, Any]
    segment: Int[Array, " B"]


def block_runs(config: ModelConfig) -> list[tuple[str, str, int, int]]:
    """(parameter name, kind, index of the first block, length) of each run of equal blocks."""
    runs, start = [], 0
    for kind, members in itertools.groupby(config.block_kinds):
        length = len(list(members))
        runs.append((f"blocks_{start}", kind, start, length))
        start += length
    return runs


class Backbone(nn.Module):
    """A causal sequence-to-sequence layer [B T D] -> [B T D]: `num_blocks` residual blocks and a final norm.

    Usable by itself, wherever a recurrent layer is: `y, state = backbone.apply(variables, x, state)`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: BackboneState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Activations, BackboneState]:
        """The stack's output for x, in the compute dtype, and the state after its last token.

        Args:
            x: [B T D]; D is `config.dim`.
            state: result of an earlier call, or `init_state`; None: empty memories.
            segment_ids: [B T]; states are dropped where the id changes, also against the id with which `state` ended. A negative
                id is padding: it changes no state.
            train: use dropout; needs `rngs={"dropout": key}` where the rate is above 0.
        """
        config = self.config
        x = x.astype(compute_dtype(config.dtype))
        previous_segment = None if state is None else state.segment
        block_states = {}
        for name, kind, start, length in block_runs(config):
            block = BLOCKS[kind]
            if config.remat == "block":
                block = nn.remat(block, prevent_cse=False)  # inside a scan nothing can be merged anyway
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, 0, nn.broadcast, nn.broadcast),
                length=length,
                unroll=length if config.num_blocks <= SMALL_STACK else 1,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, block_states[name] = scanned(config, train, name=name)(
                x,
                None if state is None else state.blocks[name],
                jnp.arange(start, start + length),
                segment_ids,
                previous_segment,
            )
        norm = RMSNorm if config.block == "7b" else LayerNorm
        y = norm(config.norm_eps, name="final_norm")(x)

        if segment_ids is not None:
            segment = last_segment(segment_ids, previous_segment)
        else:
            segment = jnp.full(x.shape[:1], -1, jnp.int32) if previous_segment is None else previous_segment
        return y, BackboneState(block_states, segment)

    @nn.nowrap
    def init_state(self, batch_size: int, dtype=jnp.float32) -> BackboneState:
        """`init_backbone_state` of this stack's configuration."""
        return init_backbone_state(self.config, batch_size, dtype)


def init_backbone_state(config: ModelConfig, batch_size: int, dtype=jnp.float32) -> BackboneState:
    """The empty state, a function of the configuration alone. `dtype` is that of the convolutions' windows."""
    states = {name: _init_run(config, kind, length, batch_size, dtype) for name, kind, _, length in block_runs(config)}
    return BackboneState(states, jnp.full((batch_size,), -1, jnp.int32))


def _init_run(config: ModelConfig, kind: str, length: int, batch_size: int, dtype):
    heads = config.num_heads

    def window(dim):
        return jnp.zeros((batch_size, config.conv_width - 1, dim), dtype) if config.conv_width else None

    if kind == "mlstm":
        inner = inner_dim(config)
        state = MLSTMBlockState(init_mlstm_state(batch_size, heads, inner // heads, inner // heads), window(inner))
    elif kind == "slstm":
        state = SLSTMBlockState(init_slstm_state(batch_size, heads, config.dim // heads), window(config.dim))
    else:
        state = init_mlstm_state(batch_size, heads, qk_dim(config) // heads, config.dim // heads)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length, *leaf.shape)), state)
