"""Attention block by block: memory linear in T, and blocks of which no query sees anything skipped.

For every block of queries one scan over the blocks of keys, with the largest score so far (m) and
the sum so far (l), after which only y and the logarithm of the sum (lse = m + log l) are kept. With
them a weight is P_ts = exp(s_ts - lse_t) straight away, which gives the derivatives without a
second pass for the sum:

  dlse_t = sum_s P_ts ds_ts        dy_t = sum_s P_ts (ds_ts v_s + dv_s) - y_t dlse_t

The rule is written for tangents. It is linear in them and each of its blocks is recomputed, so that
jax transposes it for gradients without keeping any weights; derivatives of derivatives follow.
Source: arXiv 2205.14135 (the running sum), 2307.08691 (derivatives from lse).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.call import Call, visible
from pallas_kernels.attention.reference import attention_reference
from pallas_kernels.products import product

# Measured on 2 CPU cores in float32, 4 heads of 64, forward and gradients: below 192 tokens all
# scores at once are faster (T 128: 14 ms against 17), from 256 on blocks are (T 1024: 92 ms against
# 341), of 128 tokens first and of 256 later (T 4096: 745 ms against 1021).
PAIRS_AT_ONCE = 192 * 192


class _Plan(NamedTuple):
    """What does not change from block to block."""

    scale: float
    low: jnp.dtype
    high: jnp.dtype
    first_query: int  # index of the first query among the keys


class _Blocks(NamedTuple):
    """Queries and keys cut into blocks, n of queries and m of keys, heads before time."""

    q: Float[Array, "n B G R L K"]
    k: Float[Array, "m B G L K"]
    v: Float[Array, "m B G L V"]
    q_documents: Int[Array, "n B L"] | None
    k_documents: Int[Array, "m B L"] | None


Sums = tuple[Float[Array, "n B G R L V"], Float[Array, "n B G R L"]]  # y and lse, or tangents


def attention_blockwise(call: Call) -> Float[Array, "B T H V"]:
    """Cuts queries and keys into blocks, the last ones filled up, and goes through them."""
    batch, time, heads, _ = call.q.shape
    keys, groups = call.k.shape[1:3]
    size = call.block_size
    if (time * keys <= PAIRS_AT_ONCE) if size is None else (max(time, keys) <= size):
        return attention_reference(call)
    size = size or default_block_size(keys)
    q_size, k_size = _even(time, size), _even(keys, size)

    q = call.q.reshape(batch, time, groups, heads // groups, -1)
    documents = (None, None)
    if call.q_documents is not None:
        documents = (
            _cut(call.q_documents, q_size, fill=-1),
            _cut(call.k_documents, k_size, fill=-1),
        )
    blocks = _Blocks(
        jnp.moveaxis(_cut(q, q_size), 2, 4),
        jnp.moveaxis(_cut(call.k, k_size), 2, 3),
        jnp.moveaxis(_cut(call.v, k_size), 2, 3),
        *documents,
    )
    low = jnp.result_type(call.q, call.k, call.v)
    y, _ = _attend(_Plan(call.scale, low, call.dtype, keys - time), blocks)
    y = jnp.moveaxis(y, (1, 4), (0, 2))  # [B n L G R V]
    return y.reshape(batch, -1, heads, y.shape[-1])[:, :time]


def default_block_size(keys: int) -> int:
    """Tokens per block for so many keys; see PAIRS_AT_ONCE."""
    return 128 if keys <= 1024 else 256


def _even(length: int, size: int) -> int:
    """The block length of at most `size` that leaves least to fill up."""
    return -(-length // -(-length // size))


def _cut(x: Float[Array, "B T *D"], size: int, fill: int = 0) -> Float[Array, "n B L *D"]:
    missing = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
    return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(plan: _Plan, blocks: _Blocks) -> Sums:
    """y and lse of all blocks of queries."""

    def of_queries(_: None, query: Any) -> Any:
        _, q, _ = query

        def add(seen: Array, key: Any, sums: Any) -> Any:
            k, v = key
            y, m, total = sums
            scores = jnp.where(seen, _scores(plan, q, k), -jnp.inf)
            m_new = jnp.maximum(m, jnp.max(scores, axis=-1))
            base = jnp.where(m_new > -jnp.inf, m_new, 0)
            kept = jnp.exp(m - base)
            weights = jnp.exp(scores - base[..., None])
            y = kept[..., None] * y + product("bgrts,bgsv->bgrtv", weights, v, plan.low, plan.high)
            return y, m_new, kept * total + jnp.sum(weights, axis=-1)

        empty = jnp.zeros(q.shape[:-1], plan.high)
        sums = (jnp.zeros((*q.shape[:-1], blocks.v.shape[-1]), plan.high), empty - jnp.inf, empty)
        y, m, total = _over_keys(plan, query, blocks, (blocks.k, blocks.v), add, sums)
        some = total > 0
        total = jnp.where(some, total, 1)
        return None, (y / total[..., None], jnp.where(some, m + jnp.log(total), 0))

    return lax.scan(of_queries, None, _queries(blocks))[1]


@_attend.defjvp
def _tangents(plan: _Plan, primals: Any, tangents: Any) -> tuple[Sums, Sums]:
    (blocks,), (d_blocks,) = primals, tangents
    y, lse = _attend(plan, blocks)
    dq, dk, dv = (x.astype(plan.high) for x in d_blocks[:3])

    @jax.checkpoint
    def of_queries(blocks: _Blocks, dk: Array, dv: Array, query: Any) -> Sums:
        *query, y, lse, dq = query
        q = query[1]

        @jax.checkpoint
        def add(seen: Array, key: Any, sums: Sums) -> Sums:
            k, v, dk, dv = key
            dy, d_lse = sums
            weights = jnp.where(seen, jnp.exp(_scores(plan, q, k) - lse[..., None]), 0)
            d_scores = plan.scale * (
                _linear(plan, "bgrtk,bgsk->bgrts", dq, k)
                + _linear(plan, "bgrtk,bgsk->bgrts", q, dk)
            )
            d_weights = weights * d_scores
            dy = (
                dy
                + _linear(plan, "bgrts,bgsv->bgrtv", d_weights, v)
                + _linear(plan, "bgrts,bgsv->bgrtv", weights, dv)
            )
            return dy, d_lse + jnp.sum(d_weights, axis=-1)

        zeros = (jnp.zeros_like(y), jnp.zeros_like(lse))
        dy, d_lse = _over_keys(plan, query, blocks, (blocks.k, blocks.v, dk, dv), add, zeros)
        return dy - y * d_lse[..., None], d_lse

    queries = (*_queries(blocks), y, lse, dq)
    _, d_sums = lax.scan(
        lambda carry, query: (carry, of_queries(blocks, dk, dv, query)), None, queries
    )
    return (y, lse), d_sums


def _queries(blocks: _Blocks) -> tuple[Array, Array, Array | None]:
    return jnp.arange(len(blocks.q)), blocks.q, blocks.q_documents


def _over_keys(plan: _Plan, query: Any, blocks: _Blocks, keys: Any, add: Any, sums: Any) -> Any:
    """Adds what one block of queries gets from every block of keys of which it sees something."""
    i, q, q_documents = query
    q_length, k_length = q.shape[-2], blocks.k.shape[-2]
    q_index = plan.first_query + i * q_length + jnp.arange(q_length)

    def of_keys(sums: Any, block: Any) -> Any:
        j, k_documents, key = block
        seen = visible(q_index, j * k_length + jnp.arange(k_length), q_documents, k_documents)
        sums = lax.cond(
            jnp.any(seen), add, lambda seen, key, sums: sums, seen[:, None, None], key, sums
        )
        return sums, None

    return lax.scan(of_keys, sums, (jnp.arange(len(blocks.k)), blocks.k_documents, keys))[0]


def _scores(
    plan: _Plan, q: Float[Array, "B G R L K"], k: Float[Array, "B G S K"]
) -> Float[Array, "B G R L S"]:
    return plan.scale * product("bgrtk,bgsk->bgrts", q, k, plan.low, plan.high)


def _linear(
    plan: _Plan, equation: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """A product with a tangent, which is not cast to the type of the inputs: for gradients jax
    transposes this rule and adds up what the blocks give in the type that the tangent has here.
    """
    return product(equation, x, y, plan.high, plan.high, full=plan.low == plan.high)
