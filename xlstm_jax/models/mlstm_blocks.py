"""The two mLSTM blocks: the paper's (pre up-projection, figure 11) and that of xLSTM 7B (figure 8 there)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import MLSTMState, mlstm
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import ffn_dim, inner_dim, qk_dim
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.initializers import head_linspace, shifted_normal, small_init, wang_init
from xlstm_jax.models.layers import (
    BlockDiagonalProjection,
    GatedFeedForward,
    HeadNorm,
    LayerNorm,
    Projection,
    RMSNorm,
    scale_channels,
    soft_cap,
    split_heads,
)
from xlstm_jax.typing import Activations, Array, Float, HeadActivations, Int, SegmentIds


class MLSTMBlockState(NamedTuple):
    """What the paper's mLSTM block remembers: the cell, and the last inputs of its convolution (None without one)."""

    cell: MLSTMState
    conv: Float[Array, "B W-1 I"] | None


class Gate(nn.Module):
    """The weights of one pre-activation per head; see `gate_preactivations`.

    The kernel starts at zero, so that at first the bias alone decides (paper.md of the references 1.4).
    """

    num_heads: int
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, size: int, axis: str) -> tuple[Float[Array, "D H"], Float[Array, " H"]]:
        kernel = self.param("kernel", nn.with_logical_partitioning(nn.initializers.zeros, (axis, "heads")), (size, self.num_heads))
        return kernel, self.param("bias", nn.with_logical_partitioning(self.bias_init, ("heads",)), (self.num_heads,))


def gate_preactivations(
    inputs: tuple[Float[Array, "B T _"], ...], kernels: list[Float[Array, "D H"]], biases: list[Float[Array, " H"]]
) -> list[Float[Array, "B T H"]]:
    """One pre-activation per head for each kernel, in float32, from inputs that stand side by side in the kernel's rows.

    All kernels make one product per input. The barrier holds them transposed: with their few columns XLA's CPU backend takes 3 ms
    for a kernel's gradient from 2,048 tokens of 512 channels, 0.2 ms for its transpose.
    """
    transposed = jax.lax.optimization_barrier(jnp.concatenate(kernels, axis=1).T)
    gates = jnp.concatenate(biases)
    offset = 0
    for x in inputs:
        part = transposed[:, offset : offset + x.shape[-1]].astype(x.dtype)
        gates = gates + jnp.einsum("btd,gd->btg", x, part, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        offset += x.shape[-1]
    return jnp.split(gates, len(kernels), axis=-1)


def _cell(
    config: ModelConfig,
    q: HeadActivations,
    k: HeadActivations,
    v: HeadActivations,
    gate_inputs: tuple[Float[Array, "B T _"], ...],
    state: MLSTMState | None,
    segment_ids: SegmentIds | None,
    previous_segment: Int[Array, " B"] | None,
) -> tuple[HeadActivations, MLSTMState]:
    """Gates and matrix memory. Called from a block's `__call__`, whose parameters `input_gate` and `forget_gate` become."""
    input_bias = shifted_normal(config.input_gate_bias, config.input_gate_bias_std)
    size, axis = sum(x.shape[-1] for x in gate_inputs), "inner" if len(gate_inputs) > 1 else "embed"
    input_gate = Gate(config.num_heads, input_bias, name="input_gate")(size, axis)
    forget_gate = Gate(config.num_heads, head_linspace(*config.forget_gate_bias), name="forget_gate")(size, axis)
    i, f = gate_preactivations(gate_inputs, *zip(input_gate, forget_gate, strict=True))
    return mlstm(
        q,
        k,
        v,
        soft_cap(i, config.gate_soft_cap),
        soft_cap(f, config.gate_soft_cap),
        state,
        segment_ids=segment_ids,
        previous_segment=previous_segment,
        input_gate=config.input_gate,
        chunk_size=config.chunk_size,
        eps=config.cell_eps,
        backend=config.mlstm_backend,
    )


class MLSTMBlock(nn.Module):
    """x + down((norm(mLSTM(q, k, v)) + skip * c) * SiLU(z)) with u, z = up(norm(x)), c = SiLU(conv(u)), q, k from c, v from u."""

    config: ModelConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: MLSTMBlockState | None,
        block_index: Int[Array, ""],
        segment_ids: SegmentIds | None,
        previous_segment: Int[Array, " B"] | None,
    ) -> tuple[Activations, MLSTMBlockState]:
        config = self.config
        inner = inner_dim(config)
        up_init = small_init(config.dim)

        normed = LayerNorm(config.norm_eps, name="norm")(x)
        u, z = jnp.split(Projection(2 * inner, ("embed", "inner"), up_init, name="up_projection")(normed), 2, axis=-1)
        if config.conv_width:
            window = None if state is None else state.conv
            c, window = CausalConv(config.conv_width, name="conv")(u, window, segment_ids, previous_segment)
        else:
            c, window = u, None
        c = jax.nn.silu(c)

        q = BlockDiagonalProjection(config.qkv_block_size, up_init, name="query")(c)
        k = BlockDiagonalProjection(config.qkv_block_size, up_init, name="key")(c)
        v = BlockDiagonalProjection(config.qkv_block_size, up_init, name="value")(u)
        q_heads, k_heads, v_heads = (split_heads(part, config.num_heads) for part in (q, k, v))
        cell = None if state is None else state.cell
        h, cell = _cell(config, q_heads, k_heads, v_heads, (q, k, v), cell, segment_ids, previous_segment)

        skip = self.param("skip", nn.with_logical_partitioning(nn.initializers.ones, ("inner",)), (inner,))
        y = (HeadNorm(config.norm_eps, name="head_norm")(h) + scale_channels(c, skip.astype(x.dtype))) * jax.nn.silu(z)
        down_init = wang_init(config.dim, config.num_blocks)
        y = Projection(config.dim, ("inner", "embed"), down_init, name="down_projection")(y)
        return x + nn.Dropout(config.dropout)(y, deterministic=not self.train), MLSTMBlockState(cell, window)


class MLSTMBlock7B(nn.Module):
    """x + out(norm(mLSTM(q, k, v)) * sigmoid(o)) with dense q, k, v, o from RMSNorm(x), then a residual SwiGLU layer."""

    config: ModelConfig
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: MLSTMState | None,
        block_index: Int[Array, ""],
        segment_ids: SegmentIds | None,
        previous_segment: Int[Array, " B"] | None,
    ) -> tuple[Activations, MLSTMState]:
        config = self.config
        up_init, down_init = small_init(config.dim), wang_init(config.dim, config.num_blocks)
        zeros = nn.initializers.zeros

        normed = RMSNorm(config.norm_eps, name="norm")(x)
        q = Projection(qk_dim(config), ("embed", "heads"), up_init, name="query")(normed)
        k = Projection(qk_dim(config), ("embed", "heads"), up_init, name="key")(normed)
        v = Projection(config.dim, ("embed", "heads"), up_init, name="value")(normed)
        output_gate = Projection(config.dim, ("embed", "heads"), zeros, name="output_gate")(normed)
        heads = (split_heads(part, config.num_heads) for part in (q, k, v))
        h, state = _cell(config, *heads, (normed,), state, segment_ids, previous_segment)
        y = HeadNorm(config.norm_eps, name="head_norm")(h) * jax.nn.sigmoid(output_gate)
        y = Projection(config.dim, ("heads", "embed"), down_init, name="out_projection")(y)
        x = x + nn.Dropout(config.dropout)(y, deterministic=not self.train)

        ffn = GatedFeedForward(ffn_dim(config), jax.nn.silu, up_init, down_init, name="ffn")
        y = ffn(RMSNorm(config.norm_eps, name="ffn_norm")(x))
        return x + nn.Dropout(config.dropout)(y, deterministic=not self.train), state


def init_mlstm_state(batch_size: int, num_heads: int, qk_head_dim: int, v_head_dim: int) -> MLSTMState:
    """The empty matrix memory, float32."""
    return MLSTMState(
        C=jnp.zeros((batch_size, num_heads, qk_head_dim, v_head_dim)),
        n=jnp.zeros((batch_size, num_heads, qk_head_dim)),
        m=jnp.zeros((batch_size, num_heads)),
    )
