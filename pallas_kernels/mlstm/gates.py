"""What the mLSTM's GPU kernels need of the gates, before and after: a few numbers per token, left
to XLA.

The gates do not depend on q, k, v. So the stabiliser m and all decays are known before a kernel
starts, which then takes no maximum:
  weight of token s in the output of token t, same chunk:   D_ts = exp(row_t + col_s)   where s <= t
  and document_s = document_t weight of the state before the chunk in token t:          w_t weight
  of token s in the state after the chunk:           kept_s weight of the state before the chunk in
  the one after:    w_last
with h_t = (sum_s D_ts (q_t·k_s) v_s + w_t q_t C) / (max(|qn_t|, floor_t) + eps), qn the same sum
without v and with n, q times 1/sqrt(K).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.typing import TokenFlags

TokenNumbers = Float[Array, "B H T"]


class ChunkGates(NamedTuple):
    """Per token, T a multiple of the chunk length L; all float32. document counts the resets in the
    chunk up to each token.
    """

    row: TokenNumbers
    col: TokenNumbers
    w: TokenNumbers
    kept: TokenNumbers
    w_last: Float[Array, "B H N"]
    floor: TokenNumbers
    m: Float[Array, "B H N"]  # the stabiliser after each chunk
    document: Int[Array, "B T"]


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
    log_i, log_f = jnp.moveaxis(log_i, 1, 2), jnp.moveaxis(log_f, 1, 2)
    batch, heads, time = log_i.shape
    if starts is None:
        starts = jnp.zeros((batch, time), bool)
    m = _stabilisers(log_i, log_f, m0, starts) if normalise else jnp.zeros_like(log_i)

    def cut(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], time // chunk_size, chunk_size)

    def whole(x: Array) -> Array:
        return x.reshape(*x.shape[:-2], time)

    document = jnp.cumsum(cut(starts), axis=-1, dtype=jnp.int32)
    b = jnp.cumsum(cut(log_f), axis=-1)
    m = cut(m)
    before = jnp.concatenate(
        [m0[..., None] if normalise else jnp.zeros_like(m0)[..., None], m[..., :-1, -1]], axis=-1
    )
    goes_on = (document == 0)[:, None]
    stays = (document == document[..., -1:])[:, None]
    row, col = b - m, cut(log_i) - b
    w = jnp.where(goes_on, jnp.exp(jnp.where(goes_on, row + before[..., None], 0)), 0)
    kept = jnp.where(stays, jnp.exp(jnp.where(stays, row[..., -1:] + col, 0)), 0)
    return ChunkGates(
        whole(row),
        whole(col),
        whole(w),
        whole(kept),
        w[..., -1],
        jnp.exp(-whole(m)),
        m[..., -1],
        whole(document),
    )


def _stabilisers(
    log_i: TokenNumbers, log_f: TokenNumbers, m0: Float[Array, "B H"], starts: TokenFlags
) -> TokenNumbers:
    """m_t = max(log f_t + m_{t-1}, log i_t) with m = 0 after a reset, as an associative scan."""
    forgets = jnp.where(starts[:, None], -jnp.inf, log_f)
    bound = jnp.where(starts[:, None], jnp.maximum(log_f, log_i), log_i)

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] + second[0], jnp.maximum(second[0] + first[1], second[1])

    forgets, bound = lax.associative_scan(compose, (forgets, bound), axis=2)
    return jnp.maximum(forgets + m0[..., None], bound)


def output_gradients(
    h: Float[Array, "B T H V"],
    dh: Float[Array, "B T H V"],
    qn: TokenNumbers,
    floor: TokenNumbers,
    eps: float,
    *,
    normalise: bool,
) -> tuple[TokenNumbers, TokenNumbers]:
    """(1/d, cotangent of qn): the cotangent of the numerator is dh/d, d = max(|qn|, floor) + eps."""
    if not normalise:
        return jnp.ones_like(qn), jnp.zeros_like(qn)
    per_d = 1 / (jnp.maximum(jnp.abs(qn), floor) + eps)
    overlap = jnp.moveaxis(jnp.sum(h.astype(qn.dtype) * dh.astype(qn.dtype), axis=-1), 1, 2)
    return per_d, jnp.where(jnp.abs(qn) > floor, -jnp.sign(qn) * per_d * overlap, 0)


def gate_gradients(
    q_dq: TokenNumbers,
    k_dk: TokenNumbers,
    overlap_after: Float[Array, "B H N"],
    starts: TokenFlags | None,
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Cotangents of (log i, log f) from q·dq and k·dk per token and <C, dC> + <n, dn> after each of
    N equal stretches of tokens.

    log i_s only ever scales k_s. log f_r scales all that the tokens from r on read of what was
    written before r, as well as the state after its stretch. Sums run over one stretch only, from
    its end back, so that their error does not grow with T. The log f of a document's first token
    has no state to act on: 0.
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
    d_log_f = d_log_f.reshape(batch, heads, time)
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
