"""H3 (arXiv 2212.14052, figure 1): two linear state-space models with products around them.

q, k, v = in x
k'_t = b + sum_w kernel_w k_{t-W+1+w}              the shift model: W taps
u = k' * v
h_t = exp(step A) h_{t-1} + u_t                    N complex numbers per channel, A diagonal
y_t = Re(sum_n C_n (exp(step A_n) - 1) / A_n h_t) + skip u_t
out(q * y)

A text of its own from the beginning is a convolution by FFT, with the filter that C, A and step
make. Where there is a state before, or where documents or padding are, h is computed token by token
(`elementwise_recurrence`), exactly forgotten at a document's border. Both give the same h. The
recurrence is of real numbers: g_t = exp(-i w t) h_t with the frequencies w of step A decays without
turning.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.elementwise_scan import elementwise_recurrence
from xlstm_jax.errors import UserError
from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.initializers import Initializer, ones, small_init, wang_init
from xlstm_jax.models.layers import Projection, SplitProjection
from xlstm_jax.models.long_convolution import long_convolution
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments, check_whole_time
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "h3"
STATE_CHUNK = 128  # so many tokens at once are added to the state behind a text


@dataclasses.dataclass(frozen=True)
class H3Config:
    """Settings of H3."""

    conv_width: int = setting(64, "taps of the shift model", at_least=1)
    state_dim: int = setting(32, "N, complex numbers that a channel remembers", at_least=1)
    step_range: tuple[float, ...] = setting(
        (1e-3, 1e-1), "shortest and longest step before training", entries=2, above=0
    )
    bias: bool = setting(False, "the first and the last projection have a bias")


class H3State(NamedTuple):
    """The memory as real and imaginary part, and the last keys."""

    h: Float[Array, "B 2 N D"]
    conv: Float[Array, "B W-1 D"]


class Diagonal(NamedTuple):
    """A diagonal state-space model of each channel.

    Attributes:
        decay: real part of step A, below 0.
        turn: imaginary part.
        out: what y is made of h with, real and imaginary part.
    """

    decay: Float[Array, "N D"]
    turn: Float[Array, "N D"]
    out: tuple[Float[Array, "N D"], Float[Array, "N D"]]


class H3(nn.Module):
    """The mixer; see the top of this file."""

    settings: H3Config
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: H3State | None = None, segments: Segments | None = None
    ) -> tuple[Activations, H3State]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        h, window = (None, None) if state is None else state
        q, k, v = SplitProjection(
            3 * dim,
            ("embed", "inner"),
            small_init(dim),
            parts=3,
            use_bias=settings.bias,
            name="in_projection",
        )(x)
        conv = CausalConv(settings.conv_width, name="conv")
        k, window = conv(k, window, segments.ids, segments.previous)
        u = constrain(k * v, "batch", "time", "inner")
        wide = jnp.promote_types(x.dtype, jnp.float32)
        model = jax.tree.map(lambda part: part.astype(wide), self._diagonal())
        skip_init = nn.with_logical_partitioning(ones, ("inner",))
        skip = self.param("skip", skip_init, (dim,))
        if h is None and segments.ids is None:
            y = long_convolution(u, filter_of(model, u.shape[1]))
            h = state_after(model, u)
        else:
            y, h = recurrent(model, u, h, segments)
        y = (y + skip * u).astype(x.dtype)
        out = Projection(
            dim,
            ("inner", "embed"),
            wang_init(dim, self.depth.num_blocks),
            use_bias=settings.bias,
            name="out_projection",
        )
        return out(q * y), H3State(h, window)

    def _diagonal(self) -> Diagonal:
        number, axes = self.settings.state_dim, ("state", "inner")

        def param(name: str, init: Initializer) -> Array:
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, (number, self.dim))

        def step_init(key, shape, dtype=jnp.float32):
            low, high = (jnp.log(bound) for bound in self.settings.step_range)
            return jax.random.uniform(key, shape, dtype, low, high)

        step_init = nn.with_logical_partitioning(step_init, axes[1:])
        step = jnp.exp(self.param("step_log", step_init, (self.dim,)))
        real = -jnp.exp(param("a_real_log", _a_real_log_init))
        imag = param("a_imag", _a_imag_init)
        normal = nn.initializers.normal(0.5**0.5, jnp.float32)
        c_real, c_imag = param("c_real", normal), param("c_imag", normal)
        decay, turn = step * real, step * imag
        # C (exp(step A) - 1) / A, twice for the conjugate numbers, which are not kept
        scale, size = jnp.exp(decay), real**2 + imag**2
        top_real, top_imag = scale * jnp.cos(turn) - 1, scale * jnp.sin(turn)
        b_real = (top_real * real + top_imag * imag) / size
        b_imag = (top_imag * real - top_real * imag) / size
        out = 2 * (c_real * b_real - c_imag * b_imag), 2 * (c_real * b_imag + c_imag * b_real)
        return Diagonal(decay, turn, out)


def filter_of(model: Diagonal, time: int) -> Float[Array, "T D"]:
    """What an input adds to the outputs of its own token and of those behind it.

    A power of exp(step A) is that of a chunk's first token times that of the distance from it,
    so that only about 2 sqrt(T) powers are computed.
    """
    chunk = math.isqrt(time - 1) + 1
    chunks = -(-time // chunk)
    scale, cos, sin = powers(model, jnp.arange(chunks, dtype=jnp.float32) * chunk)
    real, imag = model.out
    first = scale * (real * cos - imag * sin), -scale * (real * sin + imag * cos)
    scale, cos, sin = powers(model, jnp.arange(chunk, dtype=jnp.float32))
    filters = jnp.einsum(
        "apnd,bpnd->abd",
        jnp.stack(first, axis=1),
        jnp.stack([scale * cos, scale * sin], axis=1),
        precision=jax.lax.Precision.HIGHEST,
    )
    return filters.reshape(chunks * chunk, -1)[:time]


def powers(model: Diagonal, times: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    """Size, cosine and sine of exp(step A)^t [... N D]."""
    t = times[..., None, None]
    return jnp.exp(model.decay * t), jnp.cos(model.turn * t), jnp.sin(model.turn * t)


def state_after(model: Diagonal, u: Float[Array, "B T D"]) -> Float[Array, "B 2 N D"]:
    """h after the last token, from none before the first; nothing of it is computed where nobody
    asks for it.
    """
    chunk = min(STATE_CHUNK, u.shape[1])
    missing = -u.shape[1] % chunk
    u = jnp.pad(u.astype(model.decay.dtype), ((0, 0), (missing, 0), (0, 0)))
    parts = jnp.moveaxis(u.reshape(u.shape[0], -1, chunk, u.shape[-1]), 1, 0)
    scale, cos, sin = powers(model, jnp.arange(chunk, dtype=jnp.float32)[::-1])
    back = jnp.stack([scale * cos, scale * sin], axis=1)
    whole = powers(model, jnp.float32(chunk))

    def step(h, part):
        added = jnp.einsum("btd,tcnd->bcnd", part, back, precision=jax.lax.Precision.HIGHEST)
        return _turned(h * whole[0], *whole[1:]) + added, None

    zeros = jnp.zeros((u.shape[0], 2, *model.decay.shape), u.dtype)
    return jax.lax.scan(step, zeros, parts)[0]


def _turned(h: Float[Array, "... 2 N D"], cos: Array, sin: Array) -> Float[Array, "... 2 N D"]:
    """h times a number of size 1."""
    real, imag = h[..., 0, :, :], h[..., 1, :, :]
    return jnp.stack([real * cos - imag * sin, real * sin + imag * cos], axis=-3)


def recurrent(
    model: Diagonal, u: Float[Array, "B T D"], h: Float[Array, "B 2 N D"] | None, segments: Segments
) -> tuple[Float[Array, "B T D"], Float[Array, "B 2 N D"]]:
    """y without its skip, and h after the last token."""
    wide = model.decay.dtype
    counts = jnp.ones(u.shape[:2], bool) if segments.ids is None else segments.ids >= 0
    times = jnp.cumsum(counts, axis=1, dtype=wide)  # padding does not turn h
    keep = jnp.exp(model.decay)[None, None, None]  # of all rows, tokens and both parts

    def coefficients(tokens: Any) -> tuple[Array, Array]:
        u, times = tokens
        _, cos, sin = powers(model, times)
        u = u.astype(wide)[..., None, :]
        return keep, jnp.stack([u * cos, -u * sin], axis=-3)

    def readout(g: Array, tokens: Any) -> Array:
        _, times = tokens
        _, cos, sin = powers(model, times)
        real, imag = (g[..., part, :, :] for part in (0, 1))
        # Re(out exp(i turn t) g)
        out_real = model.out[0] * cos - model.out[1] * sin
        out_imag = model.out[0] * sin + model.out[1] * cos
        return jnp.sum(out_real * real - out_imag * imag, axis=-2)

    y, g = elementwise_recurrence(
        coefficients,
        readout,
        (u, times),
        h,
        segment_ids=segments.ids,
        previous_segment=segments.previous,
    )
    _, cos, sin = powers(model, times[:, -1])
    return y, _turned(g, cos, sin)


def _a_real_log_init(key, shape, dtype=jnp.float32) -> Float[Array, "N D"]:
    """A = -1/2 + i pi n: S4D-Lin of arXiv 2206.11893."""
    return jnp.full(shape, jnp.log(0.5), dtype)


def _a_imag_init(key, shape, dtype=jnp.float32) -> Float[Array, "N D"]:
    return jnp.broadcast_to(jnp.pi * jnp.arange(shape[0], dtype=dtype)[:, None], shape)


def empty_state(
    settings: H3Config, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> H3State:
    """No memory and zeros before the first token."""
    h_dtype = jnp.promote_types(dtype, jnp.float32)
    return H3State(
        jnp.zeros((batch_size, 2, settings.state_dim, dim), h_dtype),
        jnp.zeros((batch_size, settings.conv_width - 1, dim), dtype),
    )


def flops(settings: H3Config, dim: int, context_length: int) -> float:
    """Projections, taps, three products per channel, and the recurrence: per complex number 8 for
    its decay and turn, 2 for the input, 4 for the output.
    """
    projections, conv = 4 * 2 * dim**2, 2 * settings.conv_width * dim
    return projections + conv + (14 * settings.state_dim + 4) * dim


def check(settings: H3Config, dim: int, parts: Parts) -> None:
    """There must be an order of the steps; the time can't be spread."""
    low, high = settings.step_range
    if low > high:
        raise UserError(
            f"config key model.{NAME}.step_range is {settings.step_range}, the longest step before "
            "the shortest; give the shortest first"
        )
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=H3Config,
    module=H3,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"in_projection", "out_projection"}),
)
