"""How far two forms of a cell are apart over many tokens, where one token in a million may differ
rightly.

max(|n·q|, exp(-m)) has a kink, where the gradient jumps: a token there may fall on either side, by
the last bit of n·q, and moves gradients by hundredths of their largest entry. Of a million random
tokens some 35 are within NEAR of it. So largest entries are compared with dh = 0 at these.

A largest entry is 20 to 100 times the typical one, and a chunk is a small part of all tokens: what
is wrong in one chunk shows neither there nor in the relative L2 norm of an array. So it is taken
of every stretch of 64 tokens, too.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.testing.specs import Spec

NEAR = 1e-4  # of ln(|n·q|·exp(m)), in float64
STRETCH = 64  # tokens: a chunk's borders are multiples of it, or fall into one


class Difference(NamedTuple):
    """Of the array that differs most.

    Attributes:
        largest: difference relative to the largest entry, with dh = 0 at the kink.
        overall: relative L2 norm of the difference, all tokens counted.
        stretch: the same of the worst 64 tokens of a row and head, with dh = 0 at the kink, and
            relative to the whole array's typical size where theirs is smaller; 0 for the sLSTM,
            which has no chunks.
    """

    largest: float
    overall: float
    stretch: float

    def within(self, limits: "Difference") -> bool:
        """Whether nothing is beyond the limits; NaN is."""
        return all(x <= most for x, most in zip(self, limits, strict=True))


def limits(spec: Spec) -> Difference:
    """What two right forms may differ by.

    Two bfloat16 forms of the mLSTM were at most 0.0055 apart in largest entries and 0.0024 to
    0.0038 in the overall norm (an H100, 65,536 tokens, float64 deciding what is near the kink). A
    form and float64 are at most 0.0055 apart in the worst stretch, so two forms 0.008 (2,048
    tokens on a CPU).
    """
    if spec.K and spec.dtype == "bfloat16":
        return Difference(largest=0.01, overall=0.01, stretch=0.02)
    return Difference(*[2 * spec.tolerance] * 3)


def kink_distance(q: jax.Array, k: jax.Array, i: jax.Array, f: jax.Array) -> np.ndarray:
    """|ln(|n·q|·exp(m))| of every token, `[B T H]`, from an empty state, in float64 on a CPU."""

    def step(state: Any, token: Any) -> Any:
        n, m = state
        q, k, i, f = token
        kept = m - jnp.logaddexp(0.0, -f)
        after = jnp.maximum(kept, i)
        n = jnp.exp(kept - after)[..., None] * n + jnp.exp(i - after)[..., None] * k
        distance = jnp.abs(jnp.log(jnp.abs(jnp.sum(n * q, -1) / q.shape[-1] ** 0.5)) + after)
        return (n, after), distance

    def walk(*arrays: jax.Array) -> jax.Array:
        tokens = [jnp.moveaxis(x.astype(jnp.float64), 1, 0) for x in arrays]
        (_, batch, heads, key_dim), kind = tokens[0].shape, jnp.float64
        empty = jnp.zeros((batch, heads, key_dim), kind), jnp.zeros((batch, heads), kind)
        return jnp.moveaxis(jax.lax.scan(step, empty, tokens)[1], 0, 1)

    cpu = jax.local_devices(backend="cpu")[0]  # TPUs have no float64
    with jax.enable_x64(True):
        return np.asarray(jax.jit(walk)(*jax.device_put((q, k, i, f), cpu)))


def away_from_kink(spec: Spec, inputs: Sequence[jax.Array], cotangent: jax.Array) -> jax.Array:
    """The cotangent of h, with 0 for tokens at the kink; the same where the cell has none."""
    if not spec.K or spec.input_gate == "sigmoid":
        return cotangent
    q, k, _, i, f = inputs
    return jnp.where(kink_distance(q, k, i, f)[..., None] < NEAR, 0, cotangent)


def difference(spec: Spec, got: Any, expected: Any) -> Difference:
    """Of two forms' results, each a pair: (h and the gradients for a cotangent, the same for
    `away_from_kink` of it).
    """
    (all_got, got), (all_expected, expected) = got, expected
    pairs = zip(got, expected, strict=True)
    measured = [_largest_and_stretch(x, y, chunked=bool(spec.K)) for x, y in pairs]
    largest, stretch = np.max(measured, axis=0)  # NaN stays NaN
    overall = [_overall(x, y) for x, y in zip(all_got, all_expected, strict=True)]
    return Difference(float(largest), float(np.max(overall)), float(stretch))


@jax.jit
def _overall(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.sqrt(jnp.sum((x - y) ** 2) / jnp.sum(y**2))


@functools.partial(jax.jit, static_argnames="chunked")
def _largest_and_stretch(x: jax.Array, y: jax.Array, *, chunked: bool) -> jax.Array:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))
    if not chunked:
        return jnp.stack([largest, jnp.zeros_like(largest)])
    off, size = _mean_squares((x - y) ** 2), _mean_squares(y**2)
    return jnp.stack([largest, jnp.sqrt(jnp.max(off / jnp.maximum(size, jnp.mean(y**2))))])


def _mean_squares(squares: jax.Array) -> jax.Array:
    """Means of `[B T H ...]` over stretches and channels: `[B N H]`; the last may be shorter."""
    batch, time, heads = squares.shape[:3]
    filled = -(-time // STRETCH) * STRETCH
    pad = [(0, 0), (0, filled - time), *[(0, 0)] * (squares.ndim - 2)]
    parts = jnp.pad(squares, pad).reshape(batch, filled // STRETCH, STRETCH, heads, -1)
    return jnp.mean(parts, axis=(2, 4))
