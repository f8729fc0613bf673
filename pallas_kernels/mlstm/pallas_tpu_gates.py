"""The gates in the mLSTM's TPU kernels. XLA adds up the forget gates within each chunk; maxima and
exponentials are the kernels' own.

With b_t = log f_1 + ... + log f_t within the chunk, m0 the stabiliser before it, and s over the
tokens of t's document in the chunk:
  col_s = log i_s - b_s          m_t = b_t - row_t          row_t = -max(m0, max_{s <= t} bound_s)
  (sigmoid gate: m = 0, row_t = b_t) D_ts = exp(row_t + col_s) / sqrt(K)
  bound_s = col_s, at a document's first token max(log i_s, log f_s) - b_s w_t = exp(row_t + m0) /
  sqrt(K)                           kept_s = exp(row_L + col_s) floor_t = exp(-m_t)
  w_last = exp(row_L + m0)
m0 and w count before the chunk's first reset only, kept after its last. So a token brings two
numbers from memory (four with documents), and row_t + col_s, the difference of two numbers of which
one is the maximum, is rounded once.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.typing import Gates, TokenFlags

REGISTER = 8  # rows of a vector register

Numbers = Float[Array, "B H N R L"]  # the rows of each chunk


class Settings(NamedTuple):
    """What a call is compiled for: L, chunks between two kept states, the kind of gate, eps,
    1/sqrt(K), how to interpret.
    """

    size: int
    spacing: int
    normalise: bool
    eps: float
    scale: float
    interpret: Any


class Rows(NamedTuple):
    """The numbers of a chunk's tokens, a token per lane; without documents there are two, and bound
    is col.

    document counts the resets in the chunk up to each token; None if it can have none.
    """

    col: Float[Array, "1 L"]
    b: Float[Array, "1 L"]
    document: Float[Array, "1 L"] | None
    bound: Float[Array, "1 L"]


class End(NamedTuple):
    """Of a chunk's last token: row, the weight of the state before the chunk in the one after, m."""

    row: Float[Array, "1 1"]
    w: Float[Array, "1 1"]
    m: Float[Array, "1 1"]


class Columns(NamedTuple):
    """A number for each token of a chunk, a token per sublane; w has 1/sqrt(K)."""

    w: Float[Array, "L 1"]
    kept: Float[Array, "L 1"]
    floor: Float[Array, "L 1"]


def pack(log_i: Gates, log_f: Gates, starts: TokenFlags | None, size: int) -> Numbers:
    """col and b of each chunk, and document and bound if there are documents. log_i may be -inf
    (padding).
    """
    log_i, log_f = (
        jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1, size) for x in (log_i, log_f)
    )
    b = jnp.cumsum(log_f, axis=-1)
    rows = [log_i - b, b]
    if starts is not None:
        starts = starts.reshape(starts.shape[0], 1, -1, size)
        rows.append(jnp.broadcast_to(jnp.cumsum(starts, axis=-1, dtype=b.dtype), b.shape))
        rows.append(jnp.where(starts, jnp.maximum(log_i, log_f), log_i) - b)
    return jnp.stack(rows, axis=3)


def rows_of(numbers: Float[Array, "R L"]) -> Rows:
    """What `pack` has packed, of one chunk."""
    col, b, *documents = (numbers[i : i + 1] for i in range(numbers.shape[0]))
    return Rows(col, b, *(documents or (None, col)))


def last_stabiliser(
    settings: Settings, numbers: Numbers, m0: Float[Array, "B H"]
) -> Float[Array, "B H"]:
    """m after the last chunk, by the kernels' own steps; where nobody takes the last state, XLA
    leaves it out.
    """
    if not settings.normalise:
        return jnp.zeros_like(m0)

    def step(m: Float[Array, "B H 1 1"], numbers: Float[Array, "B H R L"]) -> tuple[Array, None]:
        return jax.vmap(jax.vmap(lambda numbers, m: end_of_chunk(settings, rows_of(numbers), m).m))(
            numbers, m
        ), None

    return lax.scan(step, m0[..., None, None], jnp.moveaxis(numbers, 2, 0))[0][..., 0, 0]


def end_of_chunk(settings: Settings, rows: Rows, m0: Float[Array, "1 1"]) -> End:
    """What a chunk leaves to the next."""
    last = rows.col.shape[1] - 1
    b, goes_on = rows.b[:, last:], True if rows.document is None else rows.document[:, last:] == 0
    row = b
    if settings.normalise:
        bound = jnp.where(_after_last_reset(rows), rows.bound, -jnp.inf)
        row = -_at_least(jnp.max(bound, axis=1, keepdims=True), m0, goes_on)
    return End(row, jnp.where(goes_on, jnp.exp(row + m0), 0), b - row)


def weights_of_chunk(
    settings: Settings, rows: Rows, m0: Float[Array, "1 1"], end: End
) -> tuple[Float[Array, "L L"], Columns, Bool[Array, "L L"]]:
    """D, the columns, and the pairs (t, s) in which t reads s.

    All but D is computed with a token per lane, one register for 128 tokens, and turned once: with
    a token per sublane, and the maxima taken from a matrix like D, a chunk of 128 tokens at K = V =
    384 has 150 more bundles than 1,530 on a v5e (benchmarks/aot_tpu.py says how to count).
    """
    goes_on, row = True if rows.document is None else rows.document == 0, rows.b
    if settings.normalise:
        row = -_at_least(_running_maximum(rows.bound, rows.document), m0, goes_on)
    scaled = row + math.log(settings.scale)
    w = jnp.where(goes_on, jnp.exp(scaled + m0), 0)
    numbers = (scaled, w, _kept(rows, end), jnp.exp(row - rows.b))
    scaled, w, kept, floor, *document = (
        turned(*numbers) if rows.document is None else turned(*numbers, rows.document)
    )

    size = rows.col.shape[1]
    t, s = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    pairs = s <= t
    if document:
        pairs &= document[0] == rows.document
    return jnp.exp(jnp.where(pairs, scaled + rows.col, -jnp.inf)), Columns(w, kept, floor), pairs


def kept_of_chunk(rows: Rows, end: End) -> Float[Array, "L 1"]:
    """The column kept alone, for the state after the chunk."""
    return turned(_kept(rows, end))[0]


def gate_gradients(
    rows: Rows,
    pairs: Bool[Array, "L L"],
    q_dq: Float[Array, "L 1"],
    k_dk: Float[Array, "L 1"],
    overlap: Float[Array, "1 1"],
) -> Float[Array, "2 L"]:
    """Cotangents of log i and log f, from q·dq and k·dk per token and <C, dC> + <n, dn> after the
    chunk.

    log i_s only ever scales k_s. log f_s scales all that the tokens from s on read of what was
    written before s, as well as the state after the chunk, if s belongs to its last document. (Of a
    document's first token the caller makes 0: it has no state to act on.)
    """
    t, s = (lax.broadcasted_iota(jnp.int32, pairs.shape, axis) for axis in (0, 1))
    d_log_i = jnp.sum(jnp.where(t == s, k_dk, 0), axis=0, keepdims=True)
    d_log_f = jnp.sum(jnp.where(pairs, q_dq - k_dk, 0), axis=0, keepdims=True) + jnp.where(
        _after_last_reset(rows), overlap, 0
    )
    return jnp.where(lax.broadcasted_iota(jnp.int32, (2, pairs.shape[0]), 0) == 0, d_log_i, d_log_f)


def turned(*rows: Float[Array, "1 L"]) -> list[Float[Array, "L 1"]]:
    """Up to eight rows (a token per lane) as columns (a token per sublane)."""
    sublane = lax.broadcasted_iota(jnp.int32, (REGISTER, rows[0].shape[1]), 0)
    filled = jnp.zeros(sublane.shape, jnp.float32)
    for i, row in enumerate(rows):
        filled = jnp.where(sublane == i, row, filled)
    columns = filled.T
    return [columns[:, i : i + 1] for i in range(len(rows))]


def _running_maximum(
    x: Float[Array, "1 L"], document: Float[Array, "1 L"] | None
) -> Float[Array, "1 L"]:
    """max_{s <= t} x_s over t's document: each step doubles how far it looks back, and what comes
    round from the end is left out.
    """
    lane, step = lax.broadcasted_iota(jnp.int32, x.shape, 1), 1
    while step < x.shape[1]:
        inside = lane >= step
        if document is not None:
            inside &= pltpu.roll(document, step, 1) == document
        x = jnp.maximum(x, jnp.where(inside, pltpu.roll(x, step, 1), -jnp.inf))
        step *= 2
    return x


def _at_least(top: Array, m0: Float[Array, "1 1"], goes_on: Array | bool) -> Array:
    """The maximum with m0, for tokens before a reset."""
    return jnp.where(goes_on, jnp.maximum(top, m0), top)


def _kept(rows: Rows, end: End) -> Float[Array, "1 L"]:
    return jnp.where(_after_last_reset(rows), jnp.exp(end.row + rows.col), 0)


def _after_last_reset(rows: Rows) -> Array | bool:
    return (
        True
        if rows.document is None
        else rows.document == rows.document[:, rows.document.shape[1] - 1 :]
    )
