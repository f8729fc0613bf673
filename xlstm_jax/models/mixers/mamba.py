"""Mamba's selective state-space model S6 (arXiv 2312.00752, algorithm 2 and figure 3).

u, z = in x                            u = SiLU(conv(u))
dt, B, C = W u                         narrow: R, N and N numbers per token
step = softplus(V dt + b)              A = -exp(a_log)
h_t = exp(step_t A) h_{t-1} + step_t u_t B_t         [N I], in each component by itself
y = out((C_t h_t + skip u_t) * SiLU(z))

Neither h nor its coefficients, N times as large as what they are made of, are in memory for more
than a chunk of tokens.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.elementwise_scan import elementwise_recurrence
from pallas_kernels.elementwise_scan.chunks import BACKENDS
from xlstm_jax.errors import UserError, backend_of
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import ones, small_init, uniform, wang_init
from xlstm_jax.models.layers import Kernel, Projection, SplitProjection
from xlstm_jax.models.mixer import (
    ONE_DOCUMENT,
    Depth,
    Mixer,
    Parts,
    Segments,
    check_whole_time,
)
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "mamba"
SHORTEST_STEP = 1e-4  # before training


@dataclasses.dataclass(frozen=True)
class MambaConfig:
    """Settings of Mamba; the defaults are the authors'."""

    up_factor: float = setting(2.0, "inner dimension / D", above=0)
    state_dim: int = setting(16, "N, numbers that a channel remembers", at_least=1)
    rank: int | None = setting(
        None, "R, numbers that a token's steps are made of; unset: D/16, rounded up", at_least=1
    )
    conv_width: int = setting(4, "taps of the causal convolution", at_least=1)
    step_range: tuple[float, ...] = setting(
        (1e-3, 1e-1), "shortest and longest step before training", entries=2, above=0
    )
    bias: bool = setting(False, "the first and the last projection have a bias")
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )
    chunk_size: int | None = setting(
        None, "L, tokens between two kept states; unset: the backend's", at_least=1, may_change=True
    )

    def inner_dim(self, dim: int) -> int:
        """I, the channels inside the block."""
        return int(self.up_factor * dim)

    def rank_of(self, dim: int) -> int:
        """R."""
        return self.rank or -(-dim // 16)


class MambaState(NamedTuple):
    """The memory, and the last inputs of the convolution."""

    h: Float[Array, "B N I"]
    conv: Float[Array, "B W-1 I"]


class Mamba(nn.Module):
    """The mixer; see the top of this file."""

    settings: MambaConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: MambaState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, MambaState]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        inner, init = settings.inner_dim(dim), small_init(dim)
        h, window = (None, None) if state is None else state

        up = SplitProjection(
            2 * inner, ("embed", "inner"), init, use_bias=settings.bias, name="in_projection"
        )(x)
        u, z = (constrain(part, "batch", "time", "inner") for part in up)
        conv = CausalConv(settings.conv_width, name="conv")
        u, window = conv(u, window, segments.ids, segments.previous)
        u = silu(u)
        step, b, c = self._selected(u)

        axes = ("state", "inner")
        a_log = self.param(
            "a_log", nn.with_logical_partitioning(_a_log_init, axes), (settings.state_dim, inner)
        )
        skip = self.param("skip", nn.with_logical_partitioning(ones, axes[1:]), (inner,))
        a = -jnp.exp(a_log)

        def coefficients(tokens: Any) -> tuple[Array, Array]:
            step, u, b, _ = tokens
            return jnp.exp(step[..., None, :] * a), (step * u)[..., None, :] * b[..., None]

        def readout(h: Array, tokens: Any) -> Array:
            _, u, _, c = tokens
            # a sum and no product of matrices, which the TPU would round to bfloat16 first
            return (jnp.sum(h * c[..., None], axis=-2) + skip * u).astype(u.dtype)

        with backend_of(f"model.{NAME}.backend", settings.backend):
            y, h = elementwise_recurrence(
                coefficients,
                readout,
                (step, u, b, c),
                h,
                segment_ids=segments.ids,
                previous_segment=segments.previous,
                chunk_size=settings.chunk_size,
                # one token is always the decode step
                backend=settings.backend if x.shape[1] > 1 else None,
            )
        y = constrain(y, "batch", "time", "inner") * silu(z)
        out = Projection(
            dim,
            ("inner", "embed"),
            wang_init(dim, self.depth.num_blocks),
            use_bias=settings.bias,
            name="out_projection",
        )
        return out(y), MambaState(h, window)

    def _selected(
        self, u: Float[Array, "B T I"]
    ) -> tuple[Float[Array, "B T I"], Float[Array, "B T N"], Float[Array, "B T N"]]:
        """Step, B and C of each token, in float32 or better."""
        settings, inner = self.settings, u.shape[-1]
        rank, number = settings.rank_of(self.dim), settings.state_dim
        narrow = Kernel(
            rank + 2 * number, ("inner", "rank"), small_init(self.dim), name="x_projection"
        )
        numbers = constrain(_wide_product(u, narrow(inner)), "batch", "time", None)
        step, b, c = jnp.split(numbers, [rank, rank + number], axis=-1)
        steps = Steps(settings, inner, name="step_projection")
        return steps(step.astype(u.dtype)), b, c


class Steps(nn.Module):
    """softplus(V dt + b) with b such that the steps before training are spread over
    `step_range`.
    """

    settings: MambaConfig
    inner: int

    @nn.compact
    def __call__(self, numbers: Float[Array, "B T R"]) -> Float[Array, "B T I"]:
        axes, shape = ("rank", "inner"), (numbers.shape[-1], self.inner)
        init = nn.with_logical_partitioning(uniform(shape[0] ** -0.5), axes)
        kernel = self.param("kernel", init, shape)

        def bias_init(key, shape, dtype=jnp.float32):
            low, high = (jnp.log(bound) for bound in self.settings.step_range)
            step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
            step = jnp.maximum(step, SHORTEST_STEP)
            return step + jnp.log(-jnp.expm1(-step))  # softplus undone

        bias = self.param("bias", nn.with_logical_partitioning(bias_init, axes[1:]), shape[1:])
        steps = _wide_product(numbers, kernel) + bias
        return constrain(jax.nn.softplus(steps), "batch", "time", "inner")


def _wide_product(x: Float[Array, "B T D"], kernel: Float[Array, "D F"]) -> Float[Array, "B T F"]:
    """x @ kernel from numbers of x's type, in float32 or better."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("btd,df->btf", x, kernel.astype(x.dtype), preferred_element_type=wide)


def _a_log_init(key, shape, dtype=jnp.float32) -> Float[Array, "N I"]:
    """A = -1, -2, ..., -N in each channel."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))[:, None], shape)


def empty_state(
    settings: MambaConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> MambaState:
    """No memory and zeros before the first token."""
    inner = settings.inner_dim(dim)
    h_dtype = jnp.promote_types(dtype, jnp.float32)
    return MambaState(
        jnp.zeros((batch_size, settings.state_dim, inner), h_dtype),
        jnp.zeros((batch_size, settings.conv_width - 1, inner), dtype),
    )


def flops(settings: MambaConfig, dim: int, context_length: int) -> float:
    """Projections, convolution and recurrence.

    Of the recurrence, per component: 2 for the decay, 1 for the input, 2 for h, 2 for the sum with
    C; per channel: 1 for step times u, 2 for the skip.
    """
    inner, number, rank = settings.inner_dim(dim), settings.state_dim, settings.rank_of(dim)
    projections = 2 * dim * 2 * inner + 2 * inner * dim
    selection = 2 * inner * (rank + 2 * number) + 2 * rank * inner
    return projections + 2 * settings.conv_width * inner + selection + (7 * number + 3) * inner


def check(settings: MambaConfig, dim: int, parts: Parts) -> None:
    """There must be channels and an order of the steps; the time can't be spread."""
    low, high = settings.step_range
    if low > high:
        raise UserError(
            f"config key model.{NAME}.step_range is {settings.step_range}, the longest step before "
            "the shortest; give the shortest first"
        )
    if settings.inner_dim(dim) < 1:
        raise UserError(
            f"config key model.{NAME}.up_factor is {settings.up_factor}, which leaves no channel "
            f"of model.dim {dim}; use a larger one"
        )
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=MambaConfig,
    module=Mamba,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"in_projection", "x_projection", "step_projection", "out_projection"}),
)
