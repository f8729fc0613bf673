"""The paper's sLSTM block (2405.04517, figure 10) up to its feed-forward layer, which is the mixer
`mlp`: "slstm+mlp".

    c = SiLU(conv(x))
    i, f = W c,  z, o = W x        block-diagonal over the heads, or dense
    y = norm(sLSTM(i, f, z, o))    with recurrent kernels within each head: memory mixing
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import SLSTMState
from pallas_kernels.slstm.api import BACKENDS
from xlstm_jax.errors import UserError, backend_of
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import (
    Initializer,
    slstm_forget_bias,
    small_init,
    uniform,
    zeros,
)
from xlstm_jax.models.layers import RESIDUAL_STREAM, HeadNorm, record_gates, split_heads
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments, check_heads
from xlstm_jax.parallel import constrain
from xlstm_jax.parallel.kernels import slstm
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float, HeadActivations

INPUT, FORGET, CELL_INPUT, OUTPUT = range(4)  # the gates' order in every array: i, f, z, o
KERNEL_AXES = ("gates", "heads", "head_dim", "head_dim_out")
DENSE_AXES = ("gates", "embed", "heads", "head_dim_out")


@dataclasses.dataclass(frozen=True)
class SLSTMConfig:
    """Settings of the sLSTM."""

    num_heads: int = setting(4, "H, number of heads; the memory mixes within a head", at_least=1)
    dense: bool = setting(
        False, "W of the gates sees all channels, not those of its own head alone"
    )
    conv_width: int = setting(
        4, "taps of the causal convolution; 0 leaves it out, and its SiLU", at_least=0
    )
    recurrent_init: str = setting(
        "zeros",
        'of the recurrent kernels, or "uniform" in +-1/sqrt(D)',
        choices=("zeros", "uniform"),
    )
    recurrent_gradient_clip: float | None = setting(
        None, "bound on the gradient through R h; the paper used 10", above=0
    )
    norm_eps: float = setting(1e-5, "added to the variance in the norm of each head", at_least=0)
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )


class SLSTMBlockState(NamedTuple):
    """The cell, and the last inputs of the convolution (None without one)."""

    cell: SLSTMState
    conv: Float[Array, "B W-1 D"] | None


class GateProjections(nn.Module):
    """W of the four gates, block-diagonal over the heads or dense: the input and forget gates see
    one input, z and o another.
    """

    init: Initializer
    dense: bool = False

    @nn.compact
    def __call__(
        self, for_i_and_f: HeadActivations, for_z_and_o: HeadActivations
    ) -> Float[Array, "B T 4 H V"]:
        num_heads, head_dim = for_i_and_f.shape[-2:]
        axes, shape = KERNEL_AXES, (4, num_heads, head_dim, head_dim)
        if self.dense:
            axes, shape = DENSE_AXES, (4, num_heads * head_dim, num_heads, head_dim)
            for_i_and_f, for_z_and_o = (
                x.reshape(*x.shape[:2], -1) for x in (for_i_and_f, for_z_and_o)
            )
        kernel = self.param("kernel", nn.with_logical_partitioning(self.init, axes), shape)
        kernel = kernel.astype(for_i_and_f.dtype)
        products = [
            jnp.einsum(
                "btd,gdhw->btghw" if self.dense else "bthv,ghvw->btghw",
                x,
                part,
                preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
            )
            for x, part in (
                (for_i_and_f, kernel[:CELL_INPUT]),
                (for_z_and_o, kernel[CELL_INPUT:]),
            )
        ]
        return jnp.concatenate(products, axis=2)


class SLSTM(nn.Module):
    """The mixer; see the top of this file."""

    settings: SLSTMConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: SLSTMBlockState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, SLSTMBlockState]:
        settings, segments = self.settings, segments or ONE_DOCUMENT
        heads, head_dim = settings.num_heads, self.dim // settings.num_heads
        cell, window = (None, None) if state is None else state

        c = x
        if settings.conv_width:
            conv = CausalConv(settings.conv_width, name="conv")
            c, window = conv(x, window, segments.ids, segments.previous)
            c = checkpoint_name(silu(c), "conv")
        gates = GateProjections(small_init(self.dim), settings.dense, name="gates")(
            split_heads(c, heads), split_heads(x, heads)
        )
        gates = checkpoint_name(gates, "qkv")
        recurrent_init, bias_init = (
            nn.with_logical_partitioning(
                zeros if settings.recurrent_init == "zeros" else uniform(self.dim**-0.5),
                KERNEL_AXES,
            ),
            nn.with_logical_partitioning(
                functools.partial(_bias_init, depth=self.depth), KERNEL_AXES[:-1]
            ),
        )
        recurrent_kernel = self.param(
            "recurrent_kernel", recurrent_init, (4, heads, head_dim, head_dim)
        )
        bias = self.param("bias", bias_init, (4, heads, head_dim))
        # without the recurrent part, which only the cell sees
        record_gates(self, gates[:, :, INPUT] + bias[INPUT], gates[:, :, FORGET] + bias[FORGET])
        with backend_of("model.slstm.backend", settings.backend):
            h, cell = slstm(
                gates,
                recurrent_kernel.astype(x.dtype),
                bias,
                cell,
                segment_ids=segments.ids,
                previous_segment=segments.previous,
                recurrent_gradient_clip=settings.recurrent_gradient_clip,
                # one token is always the decode step
                backend=settings.backend if x.shape[1] > 1 else None,
            )
        y = HeadNorm(settings.norm_eps, name="head_norm")(h).astype(x.dtype)
        return constrain(y, *RESIDUAL_STREAM), SLSTMBlockState(cell, window)


def _bias_init(key, shape, dtype=jnp.float32, *, depth: Depth) -> Float[Array, "4 H V"]:
    forget = slstm_forget_bias(*shape[1:], depth.index, depth.num_blocks)
    return jnp.zeros(shape, dtype).at[FORGET].set(forget)


def empty_state(
    settings: SLSTMConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> SLSTMBlockState:
    """No memory and zeros before the first token."""
    heads, width = settings.num_heads, settings.conv_width
    shape, cell_dtype = (batch_size, heads, dim // heads), jnp.promote_types(dtype, jnp.float32)
    empty = jnp.zeros(shape, cell_dtype)
    window = jnp.zeros((batch_size, width - 1, dim), dtype) if width else None
    return SLSTMBlockState(SLSTMState(c=empty, n=empty, h=empty, m=empty), window)


def flops(settings: SLSTMConfig, dim: int, context_length: int) -> float:
    """Convolution, gate projections and cell.

    Of the cell: the recurrent product of four gates, and 24 elementwise FLOPs per channel: 8 add
    recurrence and bias to the gates, 3 make the stabiliser, 4 the two exponential gates, 2 tanh and
    sigmoid, 5 the new c and n, 2 the output.
    """
    head_dim = dim // settings.num_heads
    conv = 2 * settings.conv_width * dim
    gates = 2 * 4 * dim * (dim if settings.dense else head_dim)
    return conv + gates + 2 * 4 * dim * head_dim + 24 * dim


def check(settings: SLSTMConfig, dim: int, parts: Parts) -> None:
    """D must fall into heads, these into the mesh's parts, and the time can't be spread."""
    if dim % settings.num_heads:
        raise UserError(
            f"config key model.dim is {dim}, not divisible by model.slstm.num_heads "
            f"{settings.num_heads}; use a multiple of it"
        )
    check_heads("slstm", settings.num_heads, parts)
    if parts.sequence != 1:
        raise UserError(
            f"config key mesh.sequence is {parts.sequence}, but the model has sLSTM blocks, whose "
            "time can't be spread over devices: each token's output enters the next token's gates; "
            "use mesh.sequence 1, or a model without them"
        )


MIXER = Mixer(
    section=SLSTMConfig,
    module=SLSTM,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"gates"}),
)
