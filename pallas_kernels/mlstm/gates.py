"""What the mLSTM's GPU kernels need of the gates, before and after: a few numbers per token, left
to XLA.

The gates do not depend on q, k, v. So the stabiliser m and all decays are known before a kernel
starts, which then takes no maximum:
  weight of token s in the output of token t, where s <= t in one chunk and one document:
      D_ts = exp((row_t + col_s) + (row_low_t + col_low_s))
  weight of the state before the chunk in token t:                       w_t
  weight of token s in the state after the chunk:                        kept_s
  weight of the state before the chunk in the one after:                 w_last
with h_t = (sum_s D_ts (q_t·k_s) v_s + w_t q_t C) / (max(|qn_t|, floor_t) + eps), qn the same sum
without v and with n, q times 1/sqrt(K). exponents.py says why row and col have two parts.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mlstm.exponents import exact_sums, floor_of, wiped
from pallas_kernels.rounding import added_to_pair
from pallas_kernels.typing import TokenFlags

TokenNumbers = Float[Array, "B H T"]


class ChunkGates(NamedTuple):
    """Per token, T a multiple of the chunk length L; all float32.

    row_low is None, for zeros, with the exponential gate. document counts the resets in the chunk
    up to each token, wiped flags those before which nothing is left of the state.
    """

    row: TokenNumbers
    col: TokenNumbers
    row_low: TokenNumbers | None
    col_low: TokenNumbers
    w: TokenNumbers
    kept: TokenNumbers
    w_last: Float[Array, "B H N"]
    floor: TokenNumbers
    m: Float[Array, "B H N"]  # the stabiliser after each chunk
    document: Int[Array, "B T"]
    wiped: Bool[Array, "B H T"]


def chunk_gates(
    log_i: Float[Array, "B T H"],
    log_f: Float[Array, "B T H"],
    m0: Float[Array, "B H"],
    starts: TokenFlags | None,
    chunk_size: int,
    *,
    normalise: bool,
) -> ChunkGates:
    """Decays and stabilisers of all chunks. log_i may be -inf (padding); T must be a multiple of
    chunk_size.
    """
    time = log_i.shape[1]

    def cut(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], time // chunk_size, chunk_size)

    def whole(x: Array) -> Array:
        return x.reshape(*x.shape[:-2], time)

    log_i, log_f = cut(jnp.moveaxis(log_i, 1, 2)), cut(jnp.moveaxis(log_f, 1, 2))
    if starts is None:
        document = jnp.zeros((len(log_i), time), jnp.int32)
        goes_on = stays = jnp.ones((1, 1, 1, 1), bool)
        b, col = exact_sums(log_i, log_f)
        bound = col.total
    else:
        starts = cut(starts)[:, None]
        document = jnp.cumsum(starts, axis=-1, dtype=jnp.int32)
        goes_on, stays = document == 0, document == document[..., -1:]
        document = whole(document[:, 0])
        b, col = exact_sums(log_i, jnp.where(starts, 0, log_f))
        # the state before a document's first token is empty, with m = 0
        bound = jnp.maximum(col.total, jnp.where(starts, log_f - b.total, -jnp.inf))

    end = (..., slice(-1, None))
    if normalise:
        inside = _highest_so_far(bound, starts)
        after = _stabilisers(b.total[end], inside[end], goes_on[..., -1:], m0)
        before = jnp.concatenate([m0[..., None, None], after[:, :, :-1]], axis=2)
        top = jnp.maximum(inside, jnp.where(goes_on, before, -jnp.inf))
        m, lacking = added_to_pair(top, b.high, b.low)
        # the state that goes on is relative to `after`, a rounded sum of its own
        missing = (m[end] - after) + lacking[end]
        row, row_low = -top, None
        nothing_left = wiped(jnp.concatenate([before, top[..., :-1]], axis=-1) - top)
        exponent = (row[end] + col.high) + (col.low + missing)
        log_w = row + before
    else:
        m, after = jnp.zeros_like(log_f), jnp.zeros_like(log_f[end])
        row, row_low, nothing_left, missing = b.high, b.low, wiped(log_f), 0.0
        exponent = (row[end] + col.high) + (row_low[end] + col.low)
        log_w = b.total
    w = jnp.exp(jnp.where(goes_on, log_w, -jnp.inf))
    return ChunkGates(
        row=whole(row),
        col=whole(col.high),
        row_low=None if normalise else whole(row_low),
        col_low=whole(col.low),
        w=whole(w),
        kept=whole(jnp.exp(jnp.where(stays, exponent, -jnp.inf))),
        w_last=w[..., -1] * (jnp.exp(missing)[..., 0] if normalise else 1),
        floor=whole(floor_of(m)),
        m=after[..., 0],
        document=document,
        wiped=whole(nothing_left),
    )


def _highest_so_far(
    x: Float[Array, "B H N L"], starts: Bool[Array, "B 1 N L"] | None
) -> Float[Array, "B H N L"]:
    """The maximum over each token and those before it in its chunk and document."""
    if starts is None:
        return lax.cummax(x, axis=3)

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        inside = jnp.where(second[0], second[1], jnp.maximum(first[1], second[1]))
        return first[0] | second[0], inside

    return lax.associative_scan(compose, (jnp.broadcast_to(starts, x.shape), x), axis=3)[1]


def _stabilisers(
    b: Float[Array, "B H N 1"],
    inside: Float[Array, "B H N 1"],
    goes_on: Bool[Array, "B 1 N 1"],
    m0: Float[Array, "B H"],
) -> Float[Array, "B H N 1"]:
    """m after each chunk: the sum of its log f, plus the larger of m before it, if the chunk has no
    reset, and of its own tokens' bound.
    """
    forgets = jnp.where(goes_on, b, -jnp.inf)

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] + second[0], jnp.maximum(second[0] + first[1], second[1])

    forgets, bound = lax.associative_scan(compose, (forgets, b + inside), axis=2)
    return jnp.maximum(forgets + m0[..., None, None], bound)


def output_gradients(
    h: Float[Array, "B T H V"],
    dh: Float[Array, "B T H V"],
    qn: TokenNumbers,
    floor: TokenNumbers,
    eps: float,
    *,
    normalise: bool,
) -> tuple[TokenNumbers, TokenNumbers]:
    """(1/d, cotangent of qn), d = max(|qn|, floor) + eps: that of the numerator is dh/d."""
    if not normalise:
        return jnp.ones_like(qn), jnp.zeros_like(qn)
    per_d = per_denominator(qn, floor, eps)
    return per_d, per_d * normaliser_slope(output_overlap(h, dh), qn, floor)


def output_overlap(h: Float[Array, "B T H V"], dh: Float[Array, "B T H V"]) -> TokenNumbers:
    """h_t·dh_t, in float32."""
    products = h.astype(jnp.float32) * dh.astype(jnp.float32)
    return jnp.moveaxis(jnp.sum(products, axis=-1), 1, 2)


def per_denominator(
    qn: Float[Array, "*B"], floor: Float[Array, "*B"], eps: float
) -> Float[Array, "*B"]:
    """1/d, d = max(|qn|, floor) + eps."""
    return 1 / (jnp.maximum(jnp.abs(qn), floor) + eps)


def normaliser_slope(
    overlap: Float[Array, "*B"], qn: Float[Array, "*B"], floor: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """d times the cotangent of qn, from h·dh. At a tie of |qn| and floor the floor counts: 0."""
    return jnp.where(jnp.abs(qn) > floor, -jnp.sign(qn) * overlap, 0.0)


def gate_gradients(
    q_dq: TokenNumbers,
    k_dk: TokenNumbers,
    overlap_after: Float[Array, "B H N"],
    starts: TokenFlags | None,
    nothing_left: Bool[Array, "B H T"],
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Cotangents of (log i, log f) from q·dq and k·dk per token and <C, dC> + <n, dn> after each of
    N equal stretches of tokens.

    log i_s only ever scales k_s. log f_r scales all that the tokens from r on read of what was
    written before r, as well as the state after its stretch. Sums run over one stretch only, from
    its end back, so that their error does not grow with T. Where nothing is left of the state
    before a token, a document's first one among them, its log f has nothing to act on: 0.
    """
    batch, heads, time = q_dq.shape
    stretches = overlap_after.shape[-1]

    def cut(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], stretches, time // stretches)

    sums = cut(q_dq - k_dk)
    if starts is None:
        d_log_f = lax.cumsum(sums, axis=3, reverse=True) + overlap_after[..., None]
    else:
        d_log_f = _sum_to_document_end(sums, cut(starts)[:, None], overlap_after)
    d_log_f = jnp.where(nothing_left, 0, d_log_f.reshape(batch, heads, time))
    if starts is not None:
        d_log_f = jnp.where(starts[:, None], 0, d_log_f)
    return jnp.moveaxis(k_dk, 1, 2), jnp.moveaxis(d_log_f, 1, 2)


def _sum_to_document_end(
    x: Float[Array, "B H N L"], starts: Bool[Array, "B 1 N L"], after: Float[Array, "B H N"]
) -> Float[Array, "B H N L"]:
    """Sums from each token to the end of its document in the stretch; the stretch's last document
    goes on to `after`.
    """
    ends = jnp.concatenate([starts[..., 1:], jnp.zeros_like(starts[..., :1])], axis=-1)
    ends = jnp.broadcast_to(ends, x.shape)
    x = x.at[..., -1].add(after)

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] | earlier[0], jnp.where(earlier[0], earlier[1], later[1] + earlier[1])

    return lax.associative_scan(compose, (ends, x), axis=3, reverse=True)[1]
