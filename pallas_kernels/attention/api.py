"""`attention`: checks a call, turns segments and cache into documents, and chooses the backend."""

from types import MappingProxyType

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.attention.blockwise import attention_blockwise
from pallas_kernels.attention.call import Call
from pallas_kernels.attention.cudnn import attention_cudnn
from pallas_kernels.attention.pallas_tpu import attention_pallas_tpu
from pallas_kernels.attention.reference import attention_reference
from pallas_kernels.attention.state import AttentionState, append
from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.segments import positions_in_document, segment_borders
from pallas_kernels.typing import Keys, LastSegment, SegmentIds, Values, state_dtype

# A backend takes a Call and returns `[B T H V]` in any float type.
BACKENDS = MappingProxyType(
    {
        "reference": attention_reference,
        "blockwise": attention_blockwise,
        "cudnn": attention_cudnn,
        "pallas_tpu": attention_pallas_tpu,
    }
)

# What backend=None tries, by device family (dispatch.py).
ORDER = MappingProxyType(
    {
        "tpu": ("pallas_tpu", "blockwise"),
        "hopper": ("cudnn", "blockwise"),
        "gpu": ("cudnn", "blockwise"),
        "cpu": ("blockwise",),
    }
)


def attention(
    q: Keys,
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G V"],
    initial_state: AttentionState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    scale: float | None = None,
    block_size: int | None = None,
    backend: Backend = None,
) -> tuple[Values, AttentionState | None]:
    """Causal self-attention over a sequence, and the cache after its last token if one was given.

    q is `[B T H K]`, k `[B T G K]`, v `[B T G V]`; H is a multiple of G, and head h of q reads
    group h // (H / G). y is `[B T H V]` and has v's type; the softmax is float32, float64 when any
    input is. Positions are the caller's: `rotary`, or none.
      initial_state: keys and values of the document so far (AttentionState.empty for none). Without
          one, no state is returned: memory would grow with the text. Its keys are as given here, so
          turned by `rotary` before.
      segment_ids: a token attends to its own document only; a negative id is padding (output 0,
          attended by nobody, takes no place in the cache). See segments.py.
      previous_segment: the id that initial_state ended with; used with segment_ids only.
      scale: factor of q·k (None: 1/sqrt(K)).
      block_size: tokens that "blockwise" handles at once (None: chosen from T and the cache).
      backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Cutting a sequence anywhere changes nothing. With a cache of N places the output of a token that
    is the (N+1)-th of its document or a later one is NaN, however the document was cut, and its key
    is not stored: ask `cache_room(state)` first. With a cache, outputs are NaN too from a token
    whose key or value is not a number to the end of its document.
    Gradients are exact for all inputs and the cache; "reference" and "blockwise" also have forward
    and second ones. Raises ValueError for shapes that do not fit, NotImplementedError where the
    backend can't serve the call. Source: arXiv 1706.03762, equation 1; groups: arXiv 2305.13245.
    """
    _check(q, k, v, initial_state, segment_ids, previous_segment, block_size)
    batch, time, _, key_dim = q.shape
    starts = padding = None
    if segment_ids is not None:
        starts, padding = segment_borders(segment_ids, previous_segment)
        q, k, v = (jnp.where(padding[..., None, None], 0, x) for x in (q, k, v))
    elif initial_state is not None:
        starts = padding = jnp.zeros((batch, time), bool)

    fits = state = None
    keys, values, q_documents, k_documents = k, v, None, None
    if starts is not None:
        q_documents = jnp.where(padding, -1, jnp.cumsum(starts, axis=1, dtype=jnp.int32))
        k_documents = q_documents
    if initial_state is not None:
        k, v, broken = _without_broken(k, v, starts)
        positions = positions_in_document(starts, padding, initial_state.length)
        places = initial_state.keys.shape[1]
        positions = jnp.where(broken, jnp.maximum(positions, places), positions)
        fits = positions < places
        state = append(initial_state, k, v, starts, padding, positions)
        keys, values, q_documents, k_documents = _with_cache(
            k, v, initial_state, state, q_documents
        )

    call = Call(
        q, keys, values, q_documents, k_documents,
        key_dim**-0.5 if scale is None else scale, state_dtype(q, k, v), block_size,
    )  # fmt: skip
    y = dispatch("attention", BACKENDS, backend, ORDER, call)
    if padding is not None:
        y = jnp.where(padding[..., None, None], 0, y)
    if fits is not None:
        y = jnp.where((fits | padding)[..., None, None], y, jnp.nan)
    return y.astype(v.dtype), state


def _without_broken(k: Array, v: Array, starts: Array) -> tuple[Array, Array, Array]:
    """Keys and values with zeros in the place of tokens that are not numbers, and `[B T]` flags of
    these and of what follows them in their documents.

    A layer gets such tokens from a layer below whose cache was full. A masked weight is 0, but 0
    times NaN is NaN: they would reach earlier tokens and later documents, and in the cache they
    would stay for good.
    """
    finite = jnp.isfinite(k).all((2, 3)) & jnp.isfinite(v).all((2, 3))
    k, v = (jnp.where(finite[..., None, None], x, 0) for x in (k, v))
    broken = (~finite).astype(jnp.int32)
    count = jnp.cumsum(broken, axis=1, dtype=jnp.int32)
    before_document = lax.cummax(jnp.where(starts, count - broken, 0), axis=1)
    return k, v, count > before_document


def _with_cache(
    k: Array,
    v: Array,
    before: AttentionState,
    after: AttentionState,
    documents: Array,
) -> tuple[Array, Array, Array, Array]:
    """Keys, values and the documents of queries and keys, where a cache is given.

    A single token reads the cache that it has been written into, so that nothing is copied. Several
    tokens read the cache as it was before them, followed by their own keys and values.
    """
    one = documents.shape[1] == 1
    cache = after if one else before
    places = jnp.arange(cache.keys.shape[1])
    stored = jnp.where(places[None] < cache.length[:, None], 0, -1)
    cached_keys, cached_values = cache.keys.astype(k.dtype), cache.values.astype(v.dtype)
    if one:
        return cached_keys, cached_values, jnp.minimum(documents, 0), stored
    return (
        jnp.concatenate([cached_keys, k], axis=1),
        jnp.concatenate([cached_values, v], axis=1),
        documents,
        jnp.concatenate([stored, documents], axis=1),
    )


def _check(
    q: Array,
    k: Array,
    v: Array,
    state: AttentionState | None,
    segment_ids: Array | None,
    previous_segment: Array | None,
    block_size: int | None,
) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from q's and v's."""
    if any(x.ndim != 4 or 0 in x.shape for x in (q, k, v)):
        raise ValueError(
            f"attention: q has shape {q.shape}, k {k.shape}, v {v.shape}; they must be [B T H K], "
            f"[B T G K] and [B T G V], none of them 0."
        )
    batch, time, heads, key_dim = q.shape
    groups, value_dim = v.shape[2:]
    if heads % groups:
        raise ValueError(
            f"attention: q has {heads} heads and v {groups} groups; heads must be a multiple of "
            f"groups."
        )
    if block_size is not None and block_size < 1:
        raise ValueError(f"attention: block_size is {block_size}; it must be at least 1, or None.")
    expected = {
        "k": (k, (batch, time, groups, key_dim)),
        "v": (v, (batch, time, groups, value_dim)),
        "segment_ids": (segment_ids, (batch, time)),
        "previous_segment": (previous_segment, (batch,)),
    }
    if state is not None:
        places = state.keys.shape[1]
        if not places:
            raise ValueError("attention: initial_state has no places; it needs at least 1.")
        expected["initial_state.keys"] = (state.keys, (batch, places, groups, key_dim))
        expected["initial_state.values"] = (state.values, (batch, places, groups, value_dim))
        expected["initial_state.length"] = (state.length, (batch,))
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"attention: {name} has shape {array.shape}; with q {q.shape} and v {v.shape} it "
                f"must be {shape}."
            )
