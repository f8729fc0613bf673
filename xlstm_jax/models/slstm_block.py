"""The paper's sLSTM block (post up-projection, figure 10)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import SLSTMState
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import slstm_ffn_dim
from xlstm_jax.errors import backend_of
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.initializers import slstm_forget_bias, small_init, uniform, wang_init, zeros
from xlstm_jax.models.layers import (
    RESIDUAL_STREAM,
    GatedFeedForward,
    HeadNorm,
    LayerNorm,
    record_gates,
    silu,
    split_heads,
)
from xlstm_jax.parallel import constrain, slstm
from xlstm_jax.typing import Activations, Array, Float, HeadActivations, Int, SegmentIds

INPUT, FORGET, CELL_INPUT, OUTPUT = range(4)  # the gates' order in every array: i, f, z, o


class SLSTMBlockState(NamedTuple):
    """What the sLSTM block remembers: the cell, and the last inputs of its convolution (None
    without one).
    """

    cell: SLSTMState
    conv: Float[Array, "B W-1 D"] | None


class GateProjections(nn.Module):
    """W of the four gates, block-diagonal over the heads: the input and forget gates see one input,
    z and o another.
    """

    init: nn.initializers.Initializer

    @nn.compact
    def __call__(
        self, for_i_and_f: HeadActivations, for_z_and_o: HeadActivations
    ) -> Float[Array, "B T 4 H V"]:
        num_heads, head_dim = for_i_and_f.shape[-2:]
        axes = ("gates", "heads", "head_dim", "head_dim_out")
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.init, axes),
            (4, num_heads, head_dim, head_dim),
        )
        kernel = kernel.astype(for_i_and_f.dtype)
        products = [
            jnp.einsum(
                "bthv,ghvw->btghw",
                x,
                part,
                preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
            )
            for x, part in ((for_i_and_f, kernel[:CELL_INPUT]), (for_z_and_o, kernel[CELL_INPUT:]))
        ]
        return jnp.concatenate(products, axis=2)


class SLSTMBlock(nn.Module):
    """x + norm(sLSTM(W SiLU(conv(norm(x))) for i and f, W norm(x) for z and o)), then a residual
    gated GELU layer.
    """

    config: ModelConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: SLSTMBlockState | None,
        block_index: Int[Array, ""],
        segment_ids: SegmentIds | None,
        previous_segment: Int[Array, " B"] | None,
    ) -> tuple[Activations, SLSTMBlockState]:
        config = self.config
        up_init, down_init = small_init(config.dim), wang_init(config.dim, config.num_blocks)
        head_dim = config.dim // config.num_heads

        normed = LayerNorm(config.norm_eps, name="norm")(x)
        if config.conv_width:
            window = None if state is None else state.conv
            c, window = CausalConv(config.conv_width, name="conv")(
                normed, window, segment_ids, previous_segment
            )
            c = silu(c)
        else:
            c, window = normed, None
        gates = GateProjections(up_init, name="gates")(
            split_heads(c, config.num_heads), split_heads(normed, config.num_heads)
        )
        axes = ("gates", "heads", "head_dim", "head_dim_out")
        recurrent_init = (
            zeros if config.slstm_recurrent_init == "zeros" else uniform(config.dim**-0.5)
        )
        recurrent_kernel = self.param(
            "recurrent_kernel",
            nn.with_logical_partitioning(recurrent_init, axes),
            (4, config.num_heads, head_dim, head_dim),
        )
        bias_init = functools.partial(
            _bias_init, block_index=block_index, num_blocks=config.num_blocks
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(bias_init, axes[:-1]),
            (4, config.num_heads, head_dim),
        )
        # without the recurrent part
        record_gates(self, "slstm", gates[:, :, 0] + bias[0], gates[:, :, 1] + bias[1])
        with backend_of("model.slstm_backend", config.slstm_backend):
            h, cell = slstm(
                gates,
                recurrent_kernel.astype(normed.dtype),
                bias,
                None if state is None else state.cell,
                segment_ids=segment_ids,
                previous_segment=previous_segment,
                # one token is always the decode step
                backend=config.slstm_backend if gates.shape[1] > 1 else None,
                recurrent_gradient_clip=config.recurrent_gradient_clip,
            )
        y = HeadNorm(config.norm_eps, name="head_norm")(h).astype(x.dtype)
        x = x + nn.Dropout(config.dropout)(
            constrain(y, *RESIDUAL_STREAM), deterministic=not self.train
        )

        gelu = functools.partial(jax.nn.gelu, approximate=False)
        ffn = GatedFeedForward(slstm_ffn_dim(config), gelu, up_init, down_init, name="ffn")
        y = ffn(LayerNorm(config.norm_eps, name="ffn_norm")(x))
        x = x + nn.Dropout(config.dropout)(y, deterministic=not self.train)
        return constrain(x, *RESIDUAL_STREAM), SLSTMBlockState(cell, window)


def _bias_init(
    key, shape, dtype=jnp.float32, *, block_index: Int[Array, ""], num_blocks: int
) -> Float[Array, "4 H V"]:
    forget = slstm_forget_bias(*shape[1:], block_index, num_blocks)
    return jnp.zeros(shape, dtype).at[FORGET].set(forget)


def init_slstm_state(
    batch_size: int, num_heads: int, head_dim: int, dtype=jnp.float32
) -> SLSTMState:
    """The empty scalar memory."""
    empty = jnp.zeros((batch_size, num_heads, head_dim), dtype)
    return SLSTMState(c=empty, n=empty, h=empty, m=empty)
