"""Causal convolutions with a filter as long as the text, by FFT, each channel by itself."""

import jax.numpy as jnp

from xlstm_jax.parallel import on_own_part
from xlstm_jax.typing import Array, Float


def long_convolution(
    x: Float[Array, "B T D"], filters: Float[Array, "T D"]
) -> Float[Array, "B T D"]:
    """y_t = sum over s <= t of filters_{t-s} x_s, in float32 or better.

    Both are padded to 2 T, so that nothing comes round from the end to the beginning. What rounding
    leaves of later tokens in earlier ones is about 1e-7 of the largest. The compiler would not
    spread an FFT over devices; rows and channels are, the time is not.
    """
    channels = ("batch", None, "inner")
    (y,) = on_own_part(_by_fft, x, filters, axes=(channels, channels[1:]), out_axes=(channels,))
    return y


def _by_fft(x: Array, filters: Array, *, sequence_axis: str | None) -> tuple[Array]:
    del sequence_axis  # the time is whole
    time, dtype = x.shape[1], jnp.promote_types(x.dtype, jnp.float32)
    spectra = (jnp.fft.rfft(part.astype(dtype), 2 * time, axis=-2) for part in (x, filters))
    product = jnp.multiply(*spectra)
    return (jnp.fft.irfft(product, 2 * time, axis=1)[:, :time],)
