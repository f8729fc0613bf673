"""The two mLSTM blocks: the paper's (pre up-projection, figure 11) and that of xLSTM 7B (figure 8
there).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import MLSTMState
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import inner_dim, large_ffn_dim, qk_dim
from xlstm_jax.errors import backend_of
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.cpu_forms import gate_preactivations
from xlstm_jax.models.initializers import (
    head_linspace,
    ones,
    shifted_normal,
    small_init,
    wang_init,
    zeros,
)
from xlstm_jax.models.layers import (
    RESIDUAL_STREAM,
    BlockDiagonalProjection,
    GatedFeedForward,
    HeadNorm,
    LayerNorm,
    Projection,
    RMSNorm,
    SplitProjection,
    record_gates,
    scale_channels,
    silu,
    soft_cap,
    split_heads,
)
from xlstm_jax.parallel import constrain, mlstm
from xlstm_jax.typing import Activations, Array, Float, HeadActivations, Int, SegmentIds


class MLSTMBlockState(NamedTuple):
    """What the paper's mLSTM block remembers: the cell, and the last inputs of its convolution
    (None without one).
    """

    cell: MLSTMState
    conv: Float[Array, "B W-1 I"] | None


class Gate(nn.Module):
    """The weights of one pre-activation per head; see `gate_preactivations`.

    The kernel starts at zero, so that at first the bias alone decides (paper.md of the references
    1.4).
    """

    num_heads: int
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, size: int) -> tuple[Float[Array, "D H"], Float[Array, " H"]]:
        axes = ("gate_inputs", "gate_heads")
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(zeros, axes),
            (size, self.num_heads),
        )
        return kernel, self.param(
            "bias", nn.with_logical_partitioning(self.bias_init, axes[1:]), (self.num_heads,)
        )


def _gate_parameters(
    config: ModelConfig, size: int
) -> tuple[Float[Array, "D 2*H"], Float[Array, " 2*H"]]:
    """Kernel and bias of input gate and forget gate, side by side. Makes the parameters of the
    block that calls it.
    """
    input_bias = shifted_normal(config.input_gate_bias, config.input_gate_bias_std)
    input_gate = Gate(config.num_heads, input_bias, name="input_gate")(size)
    forget_gate = Gate(
        config.num_heads, head_linspace(*config.forget_gate_bias), name="forget_gate"
    )(size)
    kernel, bias = (
        jnp.concatenate(parts, axis=-1) for parts in zip(input_gate, forget_gate, strict=True)
    )
    return kernel, bias


def _cell(
    config: ModelConfig,
    q: HeadActivations,
    k: HeadActivations,
    v: HeadActivations,
    gates: Float[Array, "B T 2*H"],
    state: MLSTMState | None,
    segment_ids: SegmentIds | None,
    previous_segment: Int[Array, " B"] | None,
) -> tuple[HeadActivations, MLSTMState]:
    """The matrix memory as the config describes it."""
    i, f = jnp.split(soft_cap(gates, config.gate_soft_cap), 2, axis=-1)
    with backend_of("model.mlstm_backend", config.mlstm_backend):
        return mlstm(
            q,
            k,
            v,
            i,
            f,
            state,
            segment_ids=segment_ids,
            previous_segment=previous_segment,
            input_gate=config.input_gate,
            chunk_size=config.chunk_size,
            eps=config.cell_eps,
            # one token is always the decode step
            backend=config.mlstm_backend if q.shape[1] > 1 else None,
        )


class MLSTMBlock(nn.Module):
    """x + down((norm(mLSTM(q, k, v)) + skip * c) * SiLU(z)) with u, z = up(norm(x)), c =
    SiLU(conv(u)), q, k from c, v from u.
    """

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
        u, z = (
            constrain(part, "batch", "time", "inner")
            for part in SplitProjection(
                2 * inner, ("embed", "inner"), up_init, name="up_projection"
            )(normed)
        )
        if config.conv_width:
            window = None if state is None else state.conv
            c, window = CausalConv(config.conv_width, name="conv")(
                u, window, segment_ids, previous_segment
            )
        else:
            c, window = u, None
        c = silu(c)

        projection = functools.partial(
            BlockDiagonalProjection, inner, config.qkv_block_size, up_init
        )
        query, key, value = (projection(name=name) for name in ("query", "key", "value"))
        heads = (split_heads(part, config.num_heads) for part in (query(c), key(c), value(u)))

        # The gates are linear in q, k and v, that is in c and u: so read, they need no pass over q,
        # k and v.
        kernel, bias = _gate_parameters(config, 3 * inner)
        of_q, of_k, of_v = jnp.split(kernel, 3)
        kernels = [query.followed_by(of_q) + key.followed_by(of_k), value.followed_by(of_v)]
        cell = None if state is None else state.cell
        gates = gate_preactivations([c, u], kernels, bias)
        record_gates(self, "mlstm", *jnp.split(gates, 2, axis=-1))
        h, cell = _cell(config, *heads, gates, cell, segment_ids, previous_segment)

        skip = self.param("skip", nn.with_logical_partitioning(ones, ("inner",)), (inner,))
        y = (
            HeadNorm(config.norm_eps, name="head_norm")(h) + scale_channels(c, skip.astype(x.dtype))
        ) * silu(z)
        down_init = wang_init(config.dim, config.num_blocks)
        y = Projection(config.dim, ("inner", "embed"), down_init, name="down_projection")(y)
        x = x + nn.Dropout(config.dropout)(y, deterministic=not self.train)
        return constrain(x, *RESIDUAL_STREAM), MLSTMBlockState(cell, window)


class MLSTMBlock7B(nn.Module):
    """x + out(norm(mLSTM(q, k, v)) * sigmoid(o)) with dense q, k, v, o from RMSNorm(x), then a
    residual SwiGLU layer.
    """

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

        normed = RMSNorm(config.norm_eps, name="norm")(x)
        q = Projection(qk_dim(config), ("embed", "heads"), up_init, name="query")(normed)
        k = Projection(qk_dim(config), ("embed", "heads"), up_init, name="key")(normed)
        v = Projection(config.dim, ("embed", "heads"), up_init, name="value")(normed)
        output_gate = Projection(config.dim, ("embed", "heads"), zeros, name="output_gate")(normed)
        heads = (split_heads(part, config.num_heads) for part in (q, k, v))
        kernel, bias = _gate_parameters(config, config.dim)
        gates = gate_preactivations([normed], [kernel], bias)
        record_gates(self, "mlstm", *jnp.split(gates, 2, axis=-1))
        h, state = _cell(config, *heads, gates, state, segment_ids, previous_segment)
        y = HeadNorm(config.norm_eps, name="head_norm")(h) * jax.nn.sigmoid(output_gate)
        y = Projection(config.dim, ("heads", "embed"), down_init, name="out_projection")(y)
        x = constrain(
            x + nn.Dropout(config.dropout)(y, deterministic=not self.train), *RESIDUAL_STREAM
        )

        ffn = GatedFeedForward(large_ffn_dim(config), silu, up_init, down_init, name="ffn")
        y = ffn(RMSNorm(config.norm_eps, name="ffn_norm")(x))
        x = x + nn.Dropout(config.dropout)(y, deterministic=not self.train)
        return constrain(x, *RESIDUAL_STREAM), state


def init_mlstm_state(
    batch_size: int, num_heads: int, qk_head_dim: int, v_head_dim: int, dtype=jnp.float32
) -> MLSTMState:
    """The empty matrix memory."""
    return MLSTMState(
        C=jnp.zeros((batch_size, num_heads, qk_head_dim, v_head_dim), dtype),
        n=jnp.zeros((batch_size, num_heads, qk_head_dim), dtype),
        m=jnp.zeros((batch_size, num_heads), dtype),
    )
