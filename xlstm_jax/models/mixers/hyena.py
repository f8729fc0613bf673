"""The Hyena operator (arXiv 2302.10866, section 3) of order n: long convolutions with products
between them.

v, x_1 ... x_n = conv(in x)                   3 taps
z_1 = v * x_n,  z_{m+1} = (h_m z_m) * x_{n-m}     h_m z: a convolution, plus a skip
y = out(z_n)

With order 2, y = out(x_1 * (h (x_2 * v))). The filters are functions of the lag: a small network
with sines reads the lag as a number and as waves, and what it gives falls off exponentially, in
each channel at another rate.

They fall off but never end, so there is no memory of one size: to go on, the inputs of all tokens
are kept (`cache_length`), and a step is the sum over them, with filters made anew. Nothing can be
forgotten at a document's border, which a filter reaches across. Convolutions run by FFT.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.conv import CausalConv
from xlstm_jax.models.initializers import ones, small_init, uniform, wang_init
from xlstm_jax.models.layers import Projection
from xlstm_jax.models.long_convolution import long_convolution
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Mixer, Parts, Segments, check_whole_time
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float, Int

NAME = "hyena"
NOWHERE = jnp.iinfo(jnp.int32).max
# At the lag of `filter_length` the window has fallen to 0.01, times these exponents.
WINDOW_AT_END, EXPONENTS = 1e-2, (1 / 1.5, 1 / 0.3)


@dataclasses.dataclass(frozen=True)
class HyenaConfig:
    """Settings of Hyena."""

    order: int = setting(2, "n, one more than long convolutions", at_least=2)
    conv_width: int = setting(3, "taps of the causal convolution", at_least=1)
    filter_hidden: int = setting(64, "channels of the network that makes the filters", at_least=1)
    filter_layers: int = setting(2, "its layers between the first and the last one", at_least=0)
    filter_waves: int = setting(1, "waves that it reads a lag as", at_least=1)
    filter_frequency: float = setting(10.0, "of its sines before training", above=0)
    filter_length: int = setting(
        2048, "lag that it reads as 1; filters go on beyond it", at_least=2
    )
    bias: bool = setting(False, "the first and the last projection have a bias")


class HyenaState(NamedTuple):
    """What the convolutions have read.

    Attributes:
        inputs: of each long convolution, token by token.
        length: how many tokens; those beyond the cache are lost and their outputs NaN.
        conv: the last inputs of the short one.
    """

    inputs: tuple[Float[Array, "B C D"], ...]
    length: Int[Array, " B"]
    conv: Float[Array, "B W-1 (n+1)*D"]


class Hyena(nn.Module):
    """The mixer; see the top of this file."""

    settings: HyenaConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: HyenaState | None = None, segments: Segments | None = None
    ) -> tuple[Activations, HyenaState | None]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        parts, rounds = settings.order + 1, settings.order - 1
        projected = Projection(
            parts * dim,
            ("embed", "inner"),
            small_init(dim),
            use_bias=settings.bias,
            name="in_projection",
        )(x)
        window = None if state is None else state.conv
        conv = CausalConv(settings.conv_width, name="conv")
        projected, window = conv(projected, window, segments.ids, segments.previous)
        *gates, z = (
            constrain(part, "batch", "time", "inner")
            for part in jnp.split(projected, parts, axis=-1)
        )
        places, after = _places(segments, state, x.shape[:2])
        caches = (None,) * rounds if state is None else state.inputs
        room = x.shape[1] if state is None else caches[0].shape[1]
        filters = Filters(settings, dim, name="filters")(room)
        skip_init = nn.with_logical_partitioning(ones, ("features", "inner"))
        skip = self.param("skip", skip_init, (rounds, dim))
        kept = []
        for number, cache in enumerate(caches):
            z = z * gates.pop()
            convolved, cache = _go_on(z, filters[number], cache, places)
            kept.append(cache)
            z = (convolved + skip[number] * z).astype(x.dtype)
        out = Projection(
            dim,
            ("inner", "embed"),
            wang_init(dim, self.depth.num_blocks),
            use_bias=settings.bias,
            name="out_projection",
        )
        y = out(z * gates.pop())
        return y, None if state is None else HyenaState(tuple(kept), after, window)


def _places(
    segments: Segments, state: HyenaState | None, shape: tuple[int, int]
) -> tuple[Int[Array, "B T"] | None, Int[Array, " B"]]:
    """Where in a cache each token stands, padding nowhere, and how many tokens it holds then. None:
    from the beginning, one after the other.
    """
    length = jnp.zeros(shape[:1], jnp.int32) if state is None else state.length
    if segments.ids is None:
        places = length[:, None] + jnp.arange(shape[1], dtype=jnp.int32)
        return None if state is None else places, length + shape[1]
    real = segments.ids >= 0
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    return jnp.where(real, length[:, None] + count - 1, NOWHERE), length + count[:, -1]


def _go_on(
    x: Float[Array, "B T D"],
    filters: Float[Array, "C D"],
    cache: Float[Array, "B C D"] | None,
    places: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B C D"] | None]:
    """The convolution of all that was read, at the new tokens, and the cache with them."""
    if places is None:
        return long_convolution(x, filters), None
    rows = jnp.arange(x.shape[0])[:, None]
    whole = jnp.zeros(x.shape, x.dtype) if cache is None else cache
    whole = whole.at[rows, places].set(x.astype(whole.dtype), mode="drop")
    ends = jnp.where(places == NOWHERE, 0, places)  # a padding token's result means nothing
    if x.shape[1] == 1:
        lags = ends - jnp.arange(whole.shape[1])
        weights = jnp.where((lags >= 0)[..., None], jnp.take(filters, lags, axis=0, mode="clip"), 0)
        y = jnp.sum(weights * whole, axis=1, keepdims=True)
        y = jnp.where((ends < whole.shape[1])[..., None], y, jnp.nan)
    else:
        y = long_convolution(whole, filters).at[rows, ends].get(mode="fill", fill_value=jnp.nan)
    return y, None if cache is None else whole


class Filters(nn.Module):
    """The filters of lags 0, 1, ... of all long convolutions."""

    settings: HyenaConfig
    dim: int

    @nn.compact
    def __call__(self, room: int) -> Float[Array, "n-1 C D"]:
        settings, width = self.settings, self.settings.filter_hidden
        rounds = settings.order - 1
        lags = jnp.arange(room, dtype=jnp.float32)[:, None]
        t = lags / (settings.filter_length - 1)
        bands = jnp.linspace(
            1e-4, settings.filter_waves - 1, settings.filter_waves, dtype=jnp.float32
        )
        waves = 2 * jnp.pi * lags / settings.filter_length * bands  # as zoology has it
        h = jnp.concatenate([t, jnp.cos(waves), -jnp.sin(waves)], axis=-1)
        frequency = self.param(
            "frequency",
            nn.with_logical_partitioning(
                nn.initializers.constant(settings.filter_frequency, jnp.float32), ("rank",)
            ),
            (width,),
        )
        for number in range(settings.filter_layers + 1):
            layer = Projection(
                width,
                ("features", "rank"),
                uniform(h.shape[-1] ** -0.5),
                use_bias=True,
                name=f"layer_{number}",
            )
            h = jnp.sin(frequency * layer(h))
        last = Projection(rounds * self.dim, ("rank", "inner"), uniform(width**-0.5), name="last")
        h = jnp.stack(jnp.split(last(h), rounds, axis=-1))
        exponents = jnp.linspace(*EXPONENTS, self.dim, dtype=jnp.float32)
        return h * jnp.exp(math.log(WINDOW_AT_END) * exponents * t)


def empty_state(
    settings: HyenaConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> HyenaState:
    """Room for `cache_length` tokens."""
    rounds, width = settings.order - 1, (settings.order + 1) * dim
    return HyenaState(
        tuple(jnp.zeros((batch_size, cache_length, dim), dtype) for _ in range(rounds)),
        jnp.zeros((batch_size,), jnp.int32),
        jnp.zeros((batch_size, settings.conv_width - 1, width), dtype),
    )


def flops(settings: HyenaConfig, dim: int, context_length: int) -> float:
    """Projections, taps, products, and per long convolution three real FFTs of 2 T numbers, 2.5 n
    log2(n) each, and their product. The filters are made once for all rows and count nothing.
    """
    parts, rounds = settings.order + 1, settings.order - 1
    projections = 2 * dim * parts * dim + 2 * dim**2
    fft = 3 * 5 * math.log2(2 * context_length) + 6
    return projections + 2 * settings.conv_width * parts * dim + rounds * (fft + 2) * dim + dim


def check(settings: HyenaConfig, dim: int, parts: Parts) -> None:
    """The time can't be spread."""
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=HyenaConfig,
    module=Hyena,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"in_projection", "out_projection"}),
    grows=True,
    resets=False,
)
