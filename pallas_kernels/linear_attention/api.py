"""`linear_attention`: checks a call, turns segments into decays, and chooses the backend."""

from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.linear_attention.call import Call, LinearAttentionState
from pallas_kernels.linear_attention.chunkwise import linear_attention_chunkwise
from pallas_kernels.linear_attention.recurrent import linear_attention_recurrent
from pallas_kernels.segments import segment_borders
from pallas_kernels.typing import Keys, LastSegment, SegmentIds, Values, state_dtype

# A backend takes a Call and returns (o in any float type, S).
BACKENDS = MappingProxyType(
    {"recurrent": linear_attention_recurrent, "chunkwise": linear_attention_chunkwise}
)


def linear_attention(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"],
    initial_state: LinearAttentionState | None = None,
    *,
    bonus: Float[Array, "H K"] | None = None,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    chunk_size: int | None = None,
    backend: Backend = None,
) -> tuple[Values, LinearAttentionState]:
    """S_t = diag(a_t) S_{t-1} + k_t^T v_t with o_t = q_t S_t, and the state after the last token.

    q and k are `[B T H K]`, v and o `[B T H V]`; log_decay is log a, at most 0, per head `[B T H]`
    or per key channel `[B T H K]`; -inf forgets all. Nothing is scaled or normalised. T = 1 is the
    decode step. States and decays are float32, float64 when any input is; o has v's type.
      bonus: `[H K]`, u of RWKV: o_t = q_t (S_{t-1} + diag(u) k_t^T v_t), read before the decay.
      segment_ids: drops the state between documents; a negative id is padding (output 0, state
          untouched). See segments.py.
      previous_segment: the id that initial_state ended with; used with segment_ids only.
      chunk_size: tokens that "chunkwise" handles at once, rounded up to a power of two (None:
          chosen from T).
      backend: None ("recurrent" for one token, otherwise "chunkwise"), a name of BACKENDS, or a
        tuple of names to try in order.
    Gradients of all orders, forward ones too, are exact for all inputs and the initial state.
    Serves RetNet (arXiv 2307.08621), GLA (2312.06635), RWKV-5 and RWKV-6 (2404.05892), HGRN2
    (2404.07904). Raises ValueError for shapes that do not fit.
    """
    _check(q, k, v, log_decay, initial_state, bonus, segment_ids, previous_segment, chunk_size)
    batch, time, heads, key_dim = q.shape
    dtype = state_dtype(q, k, v, log_decay)
    decay = log_decay.astype(dtype)
    decay = decay[..., None] if decay.ndim == 3 else decay
    starts = padding = None
    if segment_ids is not None:
        starts, padding = segment_borders(segment_ids, previous_segment)
        starts_here, padding_here = starts[..., None, None], padding[..., None, None]
        q, k, v = (jnp.where(padding_here, 0, x) for x in (q, k, v))
        decay = jnp.where(padding_here, 0, jnp.where(starts_here, -jnp.inf, decay))
    if initial_state is None:
        initial_state = LinearAttentionState.empty(batch, heads, key_dim, v.shape[-1])
    call = Call(
        q, k, v, decay, None if bonus is None else bonus.astype(dtype),
        initial_state.S.astype(dtype), starts, chunk_size,
    )  # fmt: skip
    order = ("recurrent",) if time == 1 else ("chunkwise",)
    o, S = dispatch("linear_attention", BACKENDS, backend, order, call)
    return o.astype(v.dtype), LinearAttentionState(S)


def _check(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: LinearAttentionState | None,
    bonus: Array | None,
    segment_ids: Array | None,
    previous_segment: Array | None,
    chunk_size: int | None,
) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from q's and v's."""
    if q.ndim != 4 or v.ndim != 4 or 0 in q.shape + v.shape:
        raise ValueError(
            f"linear_attention: q has shape {q.shape} and v {v.shape}; they must be [B T H K] and "
            f"[B T H V], none of them 0."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"linear_attention: chunk_size is {chunk_size}; it must be at least 1, or None."
        )
    batch, time, heads, key_dim = q.shape
    expected = {
        "k": (k, q.shape),
        "v": (v, (batch, time, heads, v.shape[-1])),
        "log_decay": (log_decay, q.shape if log_decay.ndim == 4 else (batch, time, heads)),
        "bonus": (bonus, (heads, key_dim)),
        "segment_ids": (segment_ids, (batch, time)),
        "previous_segment": (previous_segment, (batch,)),
    }
    if state is not None:
        expected["initial_state.S"] = (state.S, (batch, heads, key_dim, v.shape[-1]))
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"linear_attention: {name} has shape {array.shape}; with q {q.shape} and v "
                f"{v.shape} it must be {shape}."
            )
