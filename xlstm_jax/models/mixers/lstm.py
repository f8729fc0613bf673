"""The LSTM of the ablations in 2405.04517 (table 2), with PyTorch's equations and its two biases.

i, f, g, o = W x_t + b + R h_{t-1} + b'     all channels of h enter all gates
c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
h_t = sigmoid(o) tanh(c_t)                  the output

One token after the other (`jax.lax.scan`). Gates and both states are float32; what is multiplied
with R is rounded to the compute dtype, as x is.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.segments import segment_borders
from xlstm_jax.models.initializers import Initializer, uniform
from xlstm_jax.models.layers import RESIDUAL_STREAM
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments, check_whole_time
from xlstm_jax.parallel import constrain, gathered
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "lstm"


@dataclasses.dataclass(frozen=True)
class LSTMConfig:
    """Settings of the LSTM."""

    forget_gate_bias: float = setting(
        0.0, "added to the first of the forget gate's two biases before training"
    )


class LSTMState(NamedTuple):
    """The memory, and the output that enters the next token's gates."""

    c: Float[Array, "B D"]
    h: Float[Array, "B D"]


class GateKernel(nn.Module):
    """Kernel and bias of the four gates in PyTorch's order: i, f, g, o."""

    init: Initializer
    forget_gate_bias: float = 0.0

    @nn.compact
    def __call__(self, dim: int) -> tuple[Float[Array, "D 4 D"], Float[Array, "4 D"]]:
        axes = ("embed", "gates", "inner")

        def bias_init(key, shape, dtype=jnp.float32):
            return self.init(key, shape, dtype).at[1].add(self.forget_gate_bias)

        kernel_init = nn.with_logical_partitioning(self.init, axes)
        return (
            self.param("kernel", kernel_init, (dim, 4, dim)),
            self.param("bias", nn.with_logical_partitioning(bias_init, axes[1:]), (4, dim)),
        )


class LSTM(nn.Module):
    """The mixer; see the top of this file."""

    settings: LSTMConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: LSTMState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, LSTMState]:
        dim, segments = self.dim, segments or ONE_DOCUMENT
        init, wide = uniform(dim**-0.5), jnp.promote_types(x.dtype, jnp.float32)
        of_input = GateKernel(init, self.settings.forget_gate_bias, name="input")
        W, b = of_input(dim)
        R, b_recurrent = GateKernel(init, name="recurrent")(dim)
        # whole along fsdp before the scan, which would gather it for every token
        R = gathered(R.astype(x.dtype), "embed", "gates", "inner")
        gates = _product("btd,dgi->btgi", x, W.astype(x.dtype), wide) + (b + b_recurrent)
        gates = constrain(gates, "batch", "time", "gates", "inner")
        if state is None:
            state = LSTMState(*[jnp.zeros((x.shape[0], dim), wide)] * 2)

        def step(before: LSTMState, token: Any) -> tuple[LSTMState, Array]:
            gates, starts, padding = token
            c, h = before
            if starts is not None:
                c, h = (jnp.where(starts[:, None], 0, part) for part in before)
            raw = gates + _product("bd,dgi->bgi", h.astype(x.dtype), R, wide)
            i, f, g, o = (raw[:, gate] for gate in range(4))
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            after = LSTMState(c, h)
            if padding is not None:
                after = LSTMState(
                    *(
                        jnp.where(padding[:, None], old, new)
                        for old, new in zip(before, after, strict=True)
                    )
                )
            return after, h.astype(x.dtype)

        starts = padding = None
        if segments.ids is not None:
            starts, padding = segment_borders(segments.ids, segments.previous)
        by_time = jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), (gates, starts, padding))
        state, h = jax.lax.scan(step, state, by_time)
        return constrain(jnp.swapaxes(h, 0, 1), *RESIDUAL_STREAM), state


def _product(axes: str, x: Array, kernel: Array, dtype: Any) -> Array:
    return jnp.einsum(axes, x, kernel, preferred_element_type=dtype)


def empty_state(
    settings: LSTMConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> LSTMState:
    """Zeros, in float32 or better."""
    zeros = jnp.zeros((batch_size, dim), jnp.promote_types(dtype, jnp.float32))
    return LSTMState(zeros, zeros)


def flops(settings: LSTMConfig, dim: int, context_length: int) -> float:
    """Both products, and 17 elementwise FLOPs per channel: 8 add bias and recurrence to the gates,
    5 are their functions and tanh(c), 3 make c, 1 makes h.
    """
    return 2 * 2 * 4 * dim**2 + 17 * dim


def check(settings: LSTMConfig, dim: int, parts: Parts) -> None:
    """The time can't be spread."""
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=LSTMConfig,
    module=LSTM,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"input", "recurrent"}),
)
