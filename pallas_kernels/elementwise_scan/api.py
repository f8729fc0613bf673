"""`elementwise_scan` and `elementwise_recurrence`: h_t = a_t h_{t-1} + b_t."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend
from pallas_kernels.elementwise_scan.chunks import Call, Rule, scan
from pallas_kernels.segments import segment_borders
from pallas_kernels.typing import LastSegment, SegmentIds, state_dtype

State = Float[Array, "B *D"]


def elementwise_scan(
    a: Float[Array, "B T *D"],
    b: Float[Array, "B T *D"],
    initial_state: State | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    chunk_size: int | None = None,
    backend: Backend = None,
) -> tuple[Float[Array, "B T *D"], State]:
    """h_t = a_t h_{t-1} + b_t in each component: all h `[B T *D]`, in b's type, and the last one.

    The last h `[B *D]` is float32, float64 when any input is. Options as in
    `elementwise_recurrence`. Serves HGRN (arXiv 2311.04823).
    """
    if a.shape != b.shape:
        raise ValueError(
            f"elementwise_scan: a has shape {a.shape} and b {b.shape}; they must be the same, "
            f"[B T *D]."
        )
    dtype = b.dtype
    return elementwise_recurrence(
        lambda tokens: tokens, lambda h, tokens: h.astype(dtype), (a, b), initial_state,
        segment_ids=segment_ids, previous_segment=previous_segment, chunk_size=chunk_size,
        backend=backend,
    )  # fmt: skip


def elementwise_recurrence(
    coefficients: Callable[[Any], tuple[Array, Array]],
    readout: Callable[[Float[Array, "B L *D"], Any], Any],
    tokens: Any,
    initial_state: State | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    chunk_size: int | None = None,
    backend: Backend = None,
) -> tuple[Any, State]:
    """h_t = a_t h_{t-1} + b_t with (a, b) = coefficients(tokens), and y = readout(h, tokens).

    tokens is a pytree of arrays `[B T ...]`. coefficients and readout are called with stretches of
    it of any length L (1 in the form for CPUs), return `[B L *D]` and `[B L ...]`, and must treat
    each token by itself; parameters come with them as closures. So a, b and h of all tokens, which
    for S6 are N times as large as what they are made of, are never in memory at once. Returns
    (y, last h); h is float32, float64 when a or b is.
      initial_state: h before the first token `[B *D]` (None: zeros).
      segment_ids: drops h between documents; a negative id is padding (y 0, h untouched). See
          segments.py.
      previous_segment: the id that initial_state ended with; used with segment_ids only.
      chunk_size: tokens between two kept states; a chunk is recomputed in the backward pass (None:
          64 for "recurrent", 128 for "associative").
      backend: None (by the device the program is lowered for), "recurrent", "associative", or a
        tuple of names to try in order; see chunks.py.
    Memory is linear in T; derivatives of all orders are exact for all inputs, closures and the
    initial state. Serves S6 (arXiv 2312.00752, algorithm 2). Raises ValueError for shapes that do
    not fit.
    """
    batch, time = check_tokens("elementwise_recurrence", tokens, chunk_size)
    one = jax.eval_shape(lambda tokens: coefficients(_first(tokens)), tokens)
    shape = jnp.broadcast_shapes(*(x.shape for x in one))
    dtype = state_dtype(*one)
    state_shape = (batch, *shape[2:])
    if initial_state is None:
        initial_state = jnp.zeros(state_shape, dtype)
    if initial_state.shape != state_shape:
        raise ValueError(
            f"elementwise_recurrence: initial_state has shape {initial_state.shape}; with a and b "
            f"of {shape[2:]} per token it must be {state_shape}."
        )
    starts, padding = borders("elementwise_recurrence", batch, time, segment_ids, previous_segment)

    def elements(tokens: Any, starts: Array | None, padding: Array | None) -> tuple[Array, Array]:
        a, b = (x.astype(dtype) for x in coefficients(tokens))
        if starts is not None:
            a = jnp.where(over(starts, a), 0, a)
        if padding is not None:
            a, b = jnp.where(over(padding, a), 1, a), jnp.where(over(padding, b), 0, b)
        return jnp.broadcast_arrays(a, b)

    rule = Rule(
        elements,
        compose=lambda x, y: (y[0] * x[0], y[0] * x[1] + y[1]),
        apply=lambda h, x: x[0] * h + x[1],
        readout=lambda before, after, tokens, starts: readout(after, tokens),
    )
    if padding is not None:
        tokens = clean(tokens, padding)
    call = Call(rule, tokens, starts, padding, initial_state.astype(dtype), chunk_size)
    return scan("elementwise_recurrence", call, backend)


def check_tokens(op: str, tokens: Any, chunk_size: int | None) -> tuple[int, int]:
    """(B, T) of a pytree of tokens; raises ValueError where its arrays do not share them."""
    arrays = jax.tree.leaves(tokens)
    if not arrays or any(x.ndim < 2 or x.shape[:2] != arrays[0].shape[:2] for x in arrays):
        raise ValueError(
            f"{op}: the tokens' arrays have shapes {[x.shape for x in arrays]}; all must begin "
            f"with the same [B T]."
        )
    if 0 in arrays[0].shape[:2]:
        raise ValueError(f"{op}: there are no tokens: B and T are {arrays[0].shape[:2]}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{op}: chunk_size is {chunk_size}; it must be at least 1, or None.")
    return arrays[0].shape[:2]


def borders(
    op: str,
    batch: int,
    time: int,
    segment_ids: SegmentIds | None,
    previous_segment: LastSegment | None,
) -> tuple[Array | None, Array | None]:
    """(starts, padding) of a call, None without segments; raises ValueError for wrong shapes."""
    if segment_ids is None:
        return None, None
    if segment_ids.shape != (batch, time):
        raise ValueError(
            f"{op}: segment_ids has shape {segment_ids.shape}; it must be {(batch, time)}."
        )
    if previous_segment is not None and previous_segment.shape != (batch,):
        raise ValueError(
            f"{op}: previous_segment has shape {previous_segment.shape}; it must be {(batch,)}."
        )
    return segment_borders(segment_ids, previous_segment)


def over(flags: Array, x: Array) -> Array:
    """Flags of tokens `[B L]` in the shape that goes with x `[B L ...]`."""
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - 2))


def clean(tokens: Any, padding: Array | None) -> Any:
    """Padding tokens replaced by zeros: what stands there, NaN too, reaches nobody."""
    if padding is None:
        return tokens
    return jax.tree.map(lambda x: jnp.where(over(padding, x), jnp.zeros_like(x), x), tokens)


def _first(tokens: Any) -> Any:
    return jax.tree.map(lambda x: x[:, :1], tokens)
