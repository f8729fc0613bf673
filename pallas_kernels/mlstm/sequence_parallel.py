"""The mLSTM over a sequence whose time axis is sharded: exact, with one all-gather of states.

Given its gates the mLSTM is linear in its state. So each shard of the axis first summarises its
tokens: the state after them from an empty one, and the factor exp(sum of log f) that is left of a
state from before. The summaries are handed over in one all-gather, every shard puts those before it
together to its true initial state, and then runs as usual, on any backend.

What it costs above the cell itself, per token and head: one product 2·K·V FLOPs forward and two
back (k and v are read once more each way), and per shard and head K·V + K + 2 float32 numbers sent
to all shards, the same amount back for the gradient. That is less than q, k, v of one shard from
K·V / (2K + V) tokens per shard on in float32, and from twice as many in bfloat16 (341 for K = V =
512).

The sLSTM has no such form: h_{t-1} enters its gates through R, so that its state is no linear
function of the one before.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mlstm.api import mlstm, starting_state
from pallas_kernels.mlstm.exponents import log_gates
from pallas_kernels.segments import last_segment, segment_borders
from pallas_kernels.typing import (
    Gates,
    Keys,
    LastSegment,
    MLSTMState,
    SegmentIds,
    TokenFlags,
    Values,
    state_dtype,
)


class Summary(NamedTuple):
    """What a stretch of tokens does to the state before it: nothing else of the stretch matters to
    later ones.

    state: the state that the tokens leave when they begin with none; its m is -inf where they leave
    nothing. log_decay: logarithm of what is left of a state from before; -inf after a reset. first,
    last: ids of the first and last token that is no padding, negative where there is none; -1
    without documents.
    """

    state: MLSTMState
    log_decay: Float[Array, "B H"]
    first: LastSegment
    last: LastSegment


def mlstm_sequence_parallel(
    q: Keys,
    k: Keys,
    v: Values,
    i: Gates,
    f: Gates,
    initial_state: MLSTMState | None = None,
    *,
    axis_name: str | tuple[str, ...],
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    input_gate: str = "exponential",
    **options: Any,
) -> tuple[Values, MLSTMState]:
    """`mlstm` of a sequence of which each device on the mesh axis `axis_name` has its part, in
    order; to be called inside `jax.shard_map`.

    Arguments and results are those of `mlstm`: q, k, v, i, f, segment_ids and h a device's own
    part, T the same on all; initial_state, previous_segment and the returned state those of the
    whole sequence, the same on all devices. options go to `mlstm`.
    """
    normalise, dtype = input_gate == "exponential", state_dtype(q, k, v, i, f)
    before = starting_state(initial_state, q.shape, v.shape[-1], dtype, normalise)
    starts = padding = None
    first = last = jnp.full(q.shape[:1], -1)
    written = k, v
    if segment_ids is not None:
        starts, padding = segment_borders(segment_ids)
        first, last = last_segment(segment_ids[:, ::-1]), last_segment(segment_ids)
        written = (jnp.where(padding[..., None, None], 0, x) for x in written)
    summary = summarise(
        *written, *log_gates(i, f, padding, dtype, normalise), starts, normalise=normalise
    )
    shards: Summary = lax.all_gather(Summary(*summary, first, last), axis_name)
    count, index = len(shards.last), lax.axis_index(axis_name)

    earlier = jnp.where(jnp.arange(count)[:, None] < index, shards.last, -1)
    h, _ = mlstm(
        q,
        k,
        v,
        i,
        f,
        state_after(index, shards, before, previous_segment, normalise=normalise),
        segment_ids=segment_ids,
        previous_segment=last_segment(earlier.T, previous_segment),
        input_gate=input_gate,
        **options,
    )
    state = state_after(count, shards, before, previous_segment, normalise=normalise)
    return h, state._replace(m=lax.stop_gradient(state.m))


def summarise(
    k: Keys, v: Values, log_i: Gates, log_f: Gates, starts: TokenFlags | None, *, normalise: bool
) -> tuple[MLSTMState, Float[Array, "B H"]]:
    """(state after the tokens from an empty one, logarithm of what is left of an earlier state).

    Only the last state is wanted, so it is one product over all tokens: C = sum_s exp(log i_s + sum
    of log f after s - m) k_s v_s.
    """
    after = jnp.pad(lax.cumsum(log_f[:, 1:], axis=1, reverse=True), ((0, 0), (0, 1), (0, 0)))
    log_w, log_decay = log_i + after, after[:, 0] + log_f[:, 0]
    floor = jnp.full_like(log_decay, -jnp.inf)
    if starts is not None:
        stays = jnp.cumsum(starts, axis=1)
        stays = stays == stays[:, -1:]  # no reset after the token
        log_w = jnp.where(stays[..., None], log_w, -jnp.inf)
        resets = jnp.any(starts, axis=1)[:, None]
        # the last document starts from m = 0
        of_last = jnp.sum(jnp.where(stays[..., None], log_f, 0), axis=1)
        floor = jnp.where(resets, of_last, floor)
        log_decay = jnp.where(resets, -jnp.inf, log_decay)
    m = (
        lax.stop_gradient(jnp.maximum(jnp.max(log_w, axis=1), floor))
        if normalise
        else jnp.zeros_like(log_decay)
    )
    w = jnp.exp(log_w - jnp.where(jnp.isfinite(m), m, 0)[:, None])[..., None]
    kept = w * k
    C = jnp.einsum(
        "bthk,bthv->bhkv",
        kept.astype(k.dtype),
        v,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=log_decay.dtype,
    )
    n = jnp.sum(kept, axis=1) if normalise else jnp.zeros(C.shape[:-1], C.dtype)
    return MLSTMState(C, n, m), log_decay


def state_after(
    count: int | Int[Array, ""],
    shards: Summary,
    initial: MLSTMState,
    previous_segment: LastSegment | None,
    *,
    normalise: bool,
) -> MLSTMState:
    """The state after the first `count` of the shards (all arrays of `shards` have a leading axis
    for them).

    A sum of the shards' states, each times what the later ones leave of it. m is the one that the
    unsharded sequence has there, so that eps means the same. The m of shards and the result are
    constants to the gradient, initial.m is not.
    """
    steps = jnp.arange(len(shards.last))
    log_decay, m = shards.log_decay, shards.state.m
    border = _borders(shards, previous_segment)[..., None]
    bound = jnp.where(border, jnp.maximum(m, log_decay), m)  # a reset leaves m = 0
    log_decay = jnp.where(border, -jnp.inf, log_decay)
    used = (steps < count)[:, None, None]

    later = (steps[None] > steps[:, None]) & (steps < count)
    left = jnp.sum(jnp.where(later[..., None, None], log_decay[None], 0), axis=1)
    log_w = jnp.where(used, m + left, -jnp.inf)
    log_w0 = initial.m + jnp.sum(jnp.where(used, log_decay, 0), axis=0)
    if normalise:
        highest = jnp.max(jnp.where(used, bound + left, -jnp.inf), axis=0)
        m = lax.stop_gradient(jnp.maximum(log_w0, highest))
    else:
        m = jnp.zeros_like(log_w0)
    w0, w = jnp.exp(log_w0 - m), jnp.exp(log_w - m)
    C = w0[..., None, None] * initial.C + jnp.einsum(
        "sbh,sbhkv->bhkv", w, shards.state.C, precision=lax.Precision.HIGHEST
    )
    n = w0[..., None] * initial.n + jnp.einsum(
        "sbh,sbhk->bhk", w, shards.state.n, precision=lax.Precision.HIGHEST
    )
    return MLSTMState(C, n, m)


def _borders(shards: Summary, previous_segment: LastSegment | None) -> Bool[Array, "S B"]:
    """Whether the first token of each shard starts another document than the one before it."""
    ends = jnp.stack([shards.first, shards.last], axis=1).reshape(-1, shards.first.shape[1])
    return segment_borders(ends.T, previous_segment)[0].T[::2]
