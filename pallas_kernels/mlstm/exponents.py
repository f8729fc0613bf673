"""The mLSTM's gates as logarithms, and sums of them that keep their digits.

A weight is the exponential of a difference of two sums of log f. Where one forget gate is very
negative (-1e4, or -inf), both sums hold the same large number. It cancels in the difference, but a
float32 sum that holds it has no digits left for the small numbers that were added to it, and these
do not come back. So every sum here has two parts, high and low.
The high parts are multiples of one number u, chosen such that sums and differences of them are
exact; what is smaller than u is in the low parts, which stay small.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.typing import Gates, TokenFlags

# Bounds of log i and log f. They make infinite gates finite, and change no result of finite gates
# within them: log f = -2^17 leaves nothing of any state, since no log i is above 2^16.
LARGEST_LOG_I = 2.0**16
LEAST_LOG_F = -(2.0**17)


def log_gates(
    i: Gates, f: Gates, padding: TokenFlags | None, dtype: jnp.dtype, normalise: bool
) -> tuple[Gates, Gates]:
    """Logarithms of what a token writes and of what it leaves; padding neither writes nor forgets.

    What stands at padding, NaN too, is never read. i = +inf outweighs every finite gate, f = -inf
    forgets everything; such gates have gradients of 0.
    """
    i, f = i.astype(dtype), f.astype(dtype)
    if padding is not None:
        padding = padding[..., None]
        i, f = jnp.where(padding, 0, i), jnp.where(padding, 0, f)
    log_i = jnp.minimum(i, LARGEST_LOG_I) if normalise else _log_sigmoid(i)
    log_f = _log_sigmoid(f)
    if padding is None:
        return log_i, log_f
    return jnp.where(padding, -jnp.inf, log_i), jnp.where(padding, 0, log_f)


def _log_sigmoid(x: Gates) -> Gates:
    return jax.nn.log_sigmoid(jnp.maximum(x, LEAST_LOG_F))


class Split(NamedTuple):
    """A number in two parts, high + low; see the module."""

    high: Float[Array, "*B L"]
    low: Float[Array, "*B L"]

    @property
    def total(self) -> Float[Array, "*B L"]:
        """The number, rounded."""
        return self.high + self.low


def exact_sums(
    log_i: Float[Array, "*B L"],
    log_f: Float[Array, "*B L"],
    document: Int[Array, "*B L"] | None = None,
) -> tuple[Split, Split]:
    """(b, col) of L tokens: b_t = log f_1 + ... + log f_t and col_s = log i_s - b_s.

    The sum of log f over the tokens after s up to t, plus log i_s, is b_t + col_s. log_i may be
    -inf. Gradients go through the low parts. With the number of each token's document, b begins
    anew in each and u is the document's own: no other document of the row has a gradient, or moves
    the last bit of a sum. That takes L·L additions.
    """
    # Adding `large` rounds to multiples of its last digit, u. Twenty-four bits hold every multiple
    # of u up to `large`, and all sums below are at most a quarter of that.
    # A token with a smaller log i has the weight 0, so that its digits do not matter.
    size = jnp.where(log_i > -LARGEST_LOG_I, jnp.abs(log_i), 0)
    if document is None:
        of_i = jnp.max(size, axis=-1, keepdims=True)
        of_f = jnp.sum(jnp.abs(log_f), axis=-1, keepdims=True)
    else:
        same = document[..., :, None] == document[..., None, :]
        of_i = jnp.max(jnp.where(same, size[..., None, :], 0), axis=-1)
        of_f = jnp.sum(jnp.where(same, jnp.abs(log_f)[..., None, :], 0), axis=-1)
    large = lax.stop_gradient(8 * (of_i + of_f))

    def high_of(x: Array) -> Array:
        return lax.stop_gradient((x + large) - large)

    i_high, f_high = high_of(log_i), high_of(log_f)
    i_low = jnp.where(jnp.isfinite(log_i), log_i - i_high, 0)
    parts = jnp.stack([f_high, log_f - f_high])
    if document is None:
        b = Split(*jnp.cumsum(parts, axis=-1))
    else:
        t, s = (lax.broadcasted_iota(jnp.int32, same.shape, same.ndim - axis) for axis in (2, 1))
        pairs = same & (s <= t)
        b = Split(*jnp.sum(jnp.where(pairs[None], parts[..., None, :], 0), axis=-1))
    return b, Split(i_high - b.high, i_low - b.low)


def wiped(log_forget: Float[Array, "*B"]) -> Array:
    """Where exp(log_forget) is 0: nothing is left of the state before, log f has no gradient."""
    return log_forget < math.log(np.finfo(log_forget.dtype).smallest_subnormal) - 1


def floor_of(m: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """exp(-m), the least denominator of a token with the stabiliser m; never 0, so that a query of
    0 gives an output of 0.
    """
    return jnp.maximum(jnp.exp(-m), least_floor(m.dtype))


def least_floor(dtype: jnp.dtype) -> float:
    """2^-100 in float32: n·q is that small only where q or all keys are 0."""
    return float(jnp.finfo(dtype).tiny) * 2.0**26


def denominator(qn: Float[Array, "*B"], m: Float[Array, "*B"], eps: float) -> Float[Array, "*B"]:
    """max(|n·q|, exp(-m)) + eps. At a tie the floor counts, which has no gradient."""
    size, floor = jnp.abs(qn), lax.stop_gradient(floor_of(m))
    return jnp.where(size > floor, size, floor) + eps


@jax.custom_jvp
def quotient(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / y with derivatives that do not square y: y may be exp(-80), whose square is 0 in float32,
    or infinite.
    """
    return x / y


@quotient.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    result = quotient(x, y)
    return result, (dx - result * dy) * _reciprocal(y)


@jax.custom_jvp
def _reciprocal(y: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 / y


@_reciprocal.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    result = _reciprocal(*primals)
    return result, -result * (result * tangents[0])
