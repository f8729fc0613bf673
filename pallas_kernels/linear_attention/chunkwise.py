"""Linear attention chunk by chunk: products of matrices inside a chunk, the recurrence between
chunks, memory linear in T.

With a_r the decay of token r, token t reads what token s < t has written with the weight

  A_ts = sum_k q_tk k_sk exp(log a_{s+1,k} + ... + log a_{t,k})      (with a bonus: ... a_{t-1,k})

As a product of matrices that would take exp(-(log a_1 + ... + log a_s)), which overflows for
strong decays. So a chunk of L tokens is halved again and again. For s in the first and t in the
second half of a stretch the sum falls apart at its middle, into one from s + 1 to the end of the
first half and one from the beginning of the second half to t. Neither is positive and none is a
difference: nothing overflows, a decay of exactly 0 (log -inf) is one like any other, and a strong
decay costs the tokens after it no accuracy. log2(L) products of halves make up A. A chunk is
recomputed in the backward pass, from the state before it.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.linear_attention.call import Call
from pallas_kernels.products import product, product_dtype

# Tokens of a stretch. Where the halves of all sizes were one expression, XLA would fuse them into
# loops that compute the short ones again and again. A cut here takes the time of a call with decays
# per channel to 0.77 on 2 CPU cores (T 1024, 4 heads of 64 x 64, forward and gradients), and that
# of compiling one for an H100 from 42 to 19 CPU seconds.
COMPUTED_AT_ONCE = 8


def linear_attention_chunkwise(
    call: Call,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Cuts the sequence into chunks, the last one filled up with neutral tokens, and scans them."""
    time = call.q.shape[1]
    size = call.chunk_size or default_chunk_size(time)
    size = 1 << (size - 1).bit_length()
    tokens = [_cut(x, size) for x in (call.q, call.k, call.v, call.log_decay)]
    starts = call.starts
    if starts is not None and call.bonus is not None:
        tokens.append(
            _cut(jnp.where(starts, -jnp.inf, jnp.zeros((), call.S.dtype))[..., None, None], size)
        )
    low = product_dtype(jnp.result_type(call.q, call.k, call.v), call.S.dtype)

    @jax.checkpoint
    def step(S: Array, bonus: Array | None, chunk: list[Array]) -> tuple[Array, Array]:
        return _chunk(S, bonus, low, *chunk)

    S, o = lax.scan(lambda S, chunk: step(S, call.bonus, chunk), call.S, tokens)
    o = jnp.moveaxis(o, (1, 3), (0, 2))  # [B N L H V]
    return o.reshape(len(o), -1, *o.shape[3:])[:, :time], S


def default_chunk_size(time: int) -> int:
    """64, or the next power of two from T where that is less.

    Measured on 2 CPU cores, T 1024, 4 heads of 64 x 64, forward and gradients: 32 and 64 take 18
    and 21 ms with decays per channel, 12 and 10 ms with one per head; 16 and 128 more. Wider states
    cost more per chunk.
    """
    return min(64, 1 << (time - 1).bit_length())


def _cut(x: Float[Array, "B T H D"], size: int) -> Float[Array, "N B H L D"]:
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), (0, 3), (1, 2))


def _chunk(
    S: Float[Array, "B H K V"],
    bonus: Float[Array, "H K"] | None,
    low: jnp.dtype,
    q: Float[Array, "B H L K"],
    k: Float[Array, "B H L K"],
    v: Float[Array, "B H L V"],
    log_decay: Float[Array, "B H L P"],
    resets: Float[Array, "B H L 1"] | None = None,
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H L V"]]:
    """One chunk from the state before it: the state after it, and the outputs."""
    high = S.dtype
    A, up_to, behind = _weights(low, q, k, log_decay, bonus, resets)
    read = _reading(up_to, log_decay, bonus, resets)
    o = product("bhts,bhsv->bhtv", A, v, low, high) + product(
        "bhtk,bhkv->bhtv", q * jnp.exp(read), S, low, high
    )
    total = jnp.exp(up_to[..., -1, :])[..., None]
    return total * S + product("bhsk,bhsv->bhkv", k * jnp.exp(behind), v, low, high), o


def _weights(
    low: jnp.dtype,
    q: Float[Array, "B H L K"],
    k: Float[Array, "B H L K"],
    log_decay: Float[Array, "B H L P"],
    bonus: Float[Array, "H K"] | None,
    resets: Float[Array, "B H L 1"] | None,
) -> tuple[Float[Array, "B H L L"], Float[Array, "B H L P"], Float[Array, "B H L P"]]:
    """A, and the sums of log decays from the beginning of the chunk up to each token and behind
    each token to its end.
    """
    high = log_decay.dtype
    own = q.astype(high) * k.astype(high)
    own = own if bonus is None else own * bonus[None, :, None]
    A = jnp.sum(own, axis=-1)[..., None, None]  # [B H L 1 1]: stretches of one token
    # Per stretch: the sums from its beginning up to a token, and behind a token to its end.
    up_to, behind = log_decay[..., None, :], jnp.zeros_like(log_decay)[..., None, :]
    cut = [x[..., None, :] for x in (q, k, log_decay)]
    cut.append(None if resets is None else resets[..., None, :])
    while A.shape[-3] > 1:
        q, k, decay, reset = cut
        read = _reading(up_to, decay, bonus, reset)
        queries = (q * jnp.exp(read))[..., 1::2, :, :]
        keys = (k * jnp.exp(behind))[..., ::2, :, :]
        across = product("...tk,...sk->...ts", queries, keys, low, high)
        first, second = A[..., ::2, :, :], A[..., 1::2, :, :]
        A = jnp.concatenate(
            [
                jnp.concatenate([first, jnp.zeros_like(first)], axis=-1),
                jnp.concatenate([across, second], axis=-1),
            ],
            axis=-2,
        )
        total = up_to[..., -1:, :]
        up_to = _joined(up_to[..., ::2, :, :], up_to[..., 1::2, :, :] + total[..., ::2, :, :])
        behind = _joined(behind[..., ::2, :, :] + total[..., 1::2, :, :], behind[..., 1::2, :, :])
        cut = [None if x is None else _joined(x[..., ::2, :, :], x[..., 1::2, :, :]) for x in cut]
        if up_to.shape[-2] == COMPUTED_AT_ONCE:
            A, up_to, behind = lax.optimization_barrier((A, up_to, behind))
    return A[..., 0, :, :], up_to[..., 0, :, :], behind[..., 0, :, :]


def _joined(first: Float[Array, "*N L D"], second: Float[Array, "*N L D"]) -> Array:
    return jnp.concatenate([first, second], axis=-2)


def _reading(
    up_to: Float[Array, "... L P"],
    log_decay: Float[Array, "... L P"],
    bonus: Float[Array, "H K"] | None,
    resets: Float[Array, "... L 1"] | None,
) -> Float[Array, "... L P"]:
    """The log decay with which each token reads what was there before the stretch.

    Without a bonus the token's own decay is part of it. With one the token reads before its decay,
    so that only a reset counts, where its document starts with it.
    """
    if bonus is None:
        return up_to
    before = jnp.pad(up_to[..., :-1, :], ((0, 0),) * (up_to.ndim - 2) + ((1, 0), (0, 0)))
    return before if resets is None else before + resets
