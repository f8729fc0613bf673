"""The gates in the mLSTM's TPU kernels. A token brings log i and log f (with documents also their
number) from memory; sums, maxima and exponentials are the kernels' own.

With b_t = log f_1 + ... + log f_t within the chunk, m0 the stabiliser before it, and s over the
tokens of t's document in the chunk:
  col_s = log i_s - b_s
  bound_s = col_s, at a document's first token max(log i_s, log f_s) - b_s
  row_t = -max(m0, max_{s <= t} bound_s) and m_t = b_t - row_t; sigmoid gate: row_t = b_t, m_t = 0
  D_ts = exp(row_t + col_s) / sqrt(K)
  w_t = exp(row_t + m0) / sqrt(K)
  floor_t = exp(-m_t)
and for the last token L, whose m is rounded before it goes on to the next chunk:
  kept_s = exp(row_L + col_s)
  w_last = exp(row_L + m0)
m0 and w count before the chunk's first reset only, kept after its last. b, col and row are sums of
two numbers (exponents.py).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.mlstm.exponents import LARGEST_LOG_I, floor_of, wiped
from pallas_kernels.rounding import added_to_pair
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
    """The numbers of a chunk's tokens, a token per lane; b and col have two parts each.

    document counts the resets in the chunk up to each token; None if it can have none.
    """

    log_f: Float[Array, "1 L"]
    b: Float[Array, "1 L"]
    b_low: Float[Array, "1 L"]
    col: Float[Array, "1 L"]
    col_low: Float[Array, "1 L"]
    bound: Float[Array, "1 L"]
    document: Float[Array, "1 L"] | None


class End(NamedTuple):
    """Of a chunk's last token: row and its low part, the weight of the state before the chunk in
    the one after, m.
    """

    row: Float[Array, "1 1"]
    row_low: Float[Array, "1 1"]
    w: Float[Array, "1 1"]
    m: Float[Array, "1 1"]


class Columns(NamedTuple):
    """A number for each token of a chunk, a token per sublane; w has 1/sqrt(K). The sigmoid
    gate has no floor.
    """

    w: Float[Array, "L 1"]
    kept: Float[Array, "L 1"]
    floor: Float[Array, "L 1"] | None


def pack(log_i: Gates, log_f: Gates, starts: TokenFlags | None, size: int) -> Numbers:
    """log i and log f of each chunk, and how many documents began in it up to each token, if there
    are any. log_i may be -inf (padding).
    """
    rows = [jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1, size) for x in (log_i, log_f)]
    if starts is not None:
        begun = jnp.cumsum(starts.reshape(starts.shape[0], 1, -1, size), axis=-1, dtype=jnp.float32)
        rows.append(jnp.broadcast_to(begun, rows[0].shape))
    return jnp.stack(rows, axis=3)


def rows_of(numbers: Float[Array, "R L"], *, in_kernel: bool = True) -> Rows:
    """The numbers of one chunk, from what `pack` has packed. in_kernel is for Mosaic, False for
    XLA."""
    log_i, log_f, *document = (numbers[i : i + 1] for i in range(numbers.shape[0]))
    f = log_f
    if document:
        begins = document[0] > _before(document[0], 0.0, in_kernel)
        f = jnp.where(begins, 0, f)  # nothing is left of the state before it, whatever log f is
    # Adding `large` rounds to multiples of its last digit, sums of which are exact; see
    # exponents.exact_sums.
    size = jnp.where(log_i > -LARGEST_LOG_I, jnp.abs(log_i), 0) + jnp.abs(f)
    large = 8 * jnp.sum(size, axis=1, keepdims=True)
    i_high, f_high = (log_i + large) - large, (f + large) - large
    b, b_low = _sums_so_far(f_high, f - f_high, in_kernel)
    col = i_high - b
    col_low = jnp.where(log_i == -jnp.inf, 0, log_i - i_high) - b_low
    bound = col + col_low
    if document:
        bound = jnp.where(begins, jnp.maximum(bound, log_f - (b + b_low)), bound)
    return Rows(log_f, b, b_low, col, col_low, bound, document[0] if document else None)


def _before(x: Float[Array, "1 L"], first: Array | float, in_kernel: bool = True) -> Array:
    """Each token's number at the token after it; `first` at the first token."""
    moved = pltpu.roll(x, 1, 1) if in_kernel else jnp.roll(x, 1, 1)
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) == 0, first, moved)


def _sums_so_far(
    x: Float[Array, "1 L"], y: Float[Array, "1 L"], in_kernel: bool
) -> tuple[Float[Array, "1 L"], Float[Array, "1 L"]]:
    """Sums of x and of y up to each token: in the kernel each step doubles how far they reach, for
    both in one register.
    """
    if not in_kernel:
        return jnp.cumsum(x, axis=1), jnp.cumsum(y, axis=1)
    shape = (REGISTER, x.shape[1])
    sublane, lane = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    sums, step = jnp.where(sublane == 0, x, y), 1
    while step < x.shape[1]:
        sums += jnp.where(lane >= step, pltpu.roll(sums, step, 1), 0)
        step *= 2
    return sums[:1], sums[1:2]


def last_stabiliser(
    settings: Settings, numbers: Numbers, m0: Float[Array, "B H"]
) -> Float[Array, "B H"]:
    """m after the last chunk, by the kernels' own steps; where nobody takes the last state, XLA
    leaves it out.
    """
    if not settings.normalise:
        return jnp.zeros_like(m0)

    def of_head(numbers: Float[Array, "R L"], m: Float[Array, "1 1"]) -> Array:
        return end_of_chunk(settings, rows_of(numbers, in_kernel=False), m).m

    of_heads = jax.vmap(jax.vmap(of_head))

    def step(m: Float[Array, "B H 1 1"], numbers: Float[Array, "B H R L"]) -> tuple[Array, None]:
        return of_heads(numbers, m), None

    return lax.scan(step, m0[..., None, None], jnp.moveaxis(numbers, 2, 0))[0][..., 0, 0]


def end_of_chunk(settings: Settings, rows: Rows, m0: Float[Array, "1 1"]) -> End:
    """What a chunk leaves to the next."""
    last = rows.col.shape[1] - 1
    row, low = rows.b[:, last:], rows.b_low[:, last:]
    goes_on = True if rows.document is None else rows.document[:, last:] == 0
    m = jnp.zeros_like(m0)
    if settings.normalise:
        bound = jnp.where(_after_last_reset(rows), rows.bound, -jnp.inf)
        top = _at_least(jnp.max(bound, axis=1, keepdims=True), m0, goes_on)
        (m, low), row = added_to_pair(top, row, low), -top
    return End(row, low, jnp.where(goes_on, jnp.exp((row + m0) + low), 0), m)


def weights_of_chunk(
    settings: Settings, rows: Rows, m0: Float[Array, "1 1"], end: End
) -> tuple[Float[Array, "L L"], Columns, Bool[Array, "L L"], Bool[Array, "1 L"]]:
    """D, the columns, the pairs (t, s) in which t reads s, and the tokens that leave nothing of the
    state before them.

    All but D is computed with a token per lane, one register for 128 tokens, and turned into
    columns once at the end. With a token per sublane, and the maxima taken from a matrix like D,
    the program of a chunk of 128 tokens at K = V = 384 would have 150 instruction bundles more than
    its 1,530 on a v5e (benchmarks/aot_tpu.py says how to count).
    """
    goes_on, row, low = True if rows.document is None else rows.document == 0, rows.b, rows.b_low
    log_forget, log_scale = rows.log_f, math.log(settings.scale)
    numbers = {}
    if settings.normalise:
        top = _at_least(_running_maximum(rows.bound, rows.document), m0, goes_on)
        numbers["floor"] = floor_of((rows.b + top) + rows.b_low)
        row, low, log_forget = -top, 0.0, _before(top, m0) - top
    numbers |= {"row": row, "kept": _kept(rows, end)}
    numbers["w"] = jnp.where(goes_on, jnp.exp((row + m0) + (low + log_scale)), 0)
    if not settings.normalise:
        numbers["low"] = low
    if rows.document is not None:
        numbers["document"] = rows.document
    columns = dict(zip(numbers, turned(*numbers.values()), strict=True))

    size = rows.col.shape[1]
    t, s = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    pairs = s <= t
    if rows.document is not None:
        pairs &= columns["document"] == rows.document
    exponent = (columns["row"] + rows.col) + (rows.col_low + log_scale)
    if not settings.normalise:
        exponent += columns["low"]
    D = jnp.exp(jnp.where(pairs, exponent, -jnp.inf))
    column = Columns(columns["w"], columns["kept"], columns.get("floor"))
    return D, column, pairs, wiped(log_forget)


def kept_of_chunk(rows: Rows, end: End) -> Float[Array, "L 1"]:
    """The column kept alone, for the state after the chunk."""
    return turned(_kept(rows, end))[0]


def gate_gradients(
    rows: Rows,
    pairs: Bool[Array, "L L"],
    nothing_left: Bool[Array, "1 L"],
    q_dq: Float[Array, "L 1"],
    k_dk: Float[Array, "L 1"],
    overlap: Float[Array, "1 1"],
) -> Float[Array, "2 L"]:
    """Cotangents of log i and log f, from q·dq and k·dk per token and <C, dC> + <n, dn> after the
    chunk.

    log i_s only ever scales k_s. log f_s scales all that the tokens from s on read of what was
    written before s, as well as the state after the chunk, if s belongs to its last document; 0
    where nothing is left of the state before s. (The caller sets a document's first token to 0.)
    """
    t, s = (lax.broadcasted_iota(jnp.int32, pairs.shape, axis) for axis in (0, 1))
    d_log_i = jnp.sum(jnp.where(t == s, k_dk, 0), axis=0, keepdims=True)
    d_log_f = jnp.sum(jnp.where(pairs, q_dq - k_dk, 0), axis=0, keepdims=True) + jnp.where(
        _after_last_reset(rows), overlap, 0
    )
    d_log_f = jnp.where(nothing_left, 0, d_log_f)
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
    exponent = (end.row + rows.col) + (end.row_low + rows.col_low)
    return jnp.where(_after_last_reset(rows), jnp.exp(exponent), 0)


def _after_last_reset(rows: Rows) -> Array | bool:
    return (
        True
        if rows.document is None
        else rows.document == rows.document[:, rows.document.shape[1] - 1 :]
    )
