"""`mlstm`: checks a call, turns gates and segments into what every backend takes, and chooses the
backend.
"""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.chunkwise import mlstm_chunkwise
from pallas_kernels.mlstm.exponents import log_gates
from pallas_kernels.mlstm.pallas_gpu import mlstm_pallas_gpu
from pallas_kernels.mlstm.pallas_tpu import mlstm_pallas_tpu
from pallas_kernels.mlstm.pallas_triton import mlstm_pallas_triton
from pallas_kernels.mlstm.parallel import mlstm_parallel
from pallas_kernels.mlstm.recurrent import mlstm_recurrent
from pallas_kernels.segments import segment_borders
from pallas_kernels.typing import (
    Gates,
    Keys,
    LastSegment,
    MLSTMState,
    SegmentIds,
    Values,
    state_dtype,
)


def _from_zeros(backend: Callable) -> Callable:
    """A backend for which the empty state is one like any other."""

    @functools.wraps(backend)
    def run(call: Call, options: Options) -> Any:
        if call.state is None:
            (batch, _, heads, key_dim), value_dim = call.q.shape, call.v.shape[3]
            state = MLSTMState.empty(batch, heads, key_dim, value_dim, call.log_i.dtype)
            call = call._replace(state=state)
        return backend(call, options)

    return run


# A backend takes (Call, Options) and returns (h, state). A Pallas backend joins here. Where no
# state is given, "pallas_tpu" and "pallas_gpu" read none; the others are handed zeros.
BACKENDS = MappingProxyType(
    {
        "recurrent": _from_zeros(mlstm_recurrent),
        "parallel": _from_zeros(mlstm_parallel),
        "chunkwise": _from_zeros(mlstm_chunkwise),
        "pallas_tpu": mlstm_pallas_tpu,
        "pallas_gpu": mlstm_pallas_gpu,
        "pallas_triton": _from_zeros(mlstm_pallas_triton),
    }
)

# What backend=None tries, by device family (dispatch.py): for more than one token, and for one.
ORDER = MappingProxyType(
    {
        "tpu": ("pallas_tpu", "chunkwise"),
        "hopper": ("pallas_gpu", "pallas_triton", "chunkwise"),
        "gpu": ("pallas_triton", "chunkwise"),
        "cpu": ("chunkwise",),
    }
)
STEP_ORDER = MappingProxyType(
    {
        "tpu": ("recurrent",),
        "hopper": ("pallas_triton", "recurrent"),
        "gpu": ("pallas_triton", "recurrent"),
        "cpu": ("recurrent",),
    }
)


def mlstm(
    q: Keys,
    k: Keys,
    v: Values,
    i: Gates,
    f: Gates,
    initial_state: MLSTMState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    input_gate: Literal["exponential", "sigmoid"] = "exponential",
    chunk_size: int | None = None,
    eps: float = 1e-6,
    backend: Backend = None,
) -> tuple[Values, MLSTMState]:
    """Runs the mLSTM over a sequence and returns its outputs and the state after the last token.

    q and k are `[B T H K]` (products with q are divided by sqrt(K)), v and h `[B T H V]`, i and f
    `[B T H]` gate pre-activations. T = 1 is the decode step. States are float32, float64 when any
    input is; h has v's type.
      segment_ids: drops the state between documents; a negative id is padding (output 0, state
          untouched). See segments.py.
      previous_segment: the id that initial_state ended with; used with segment_ids only.
      input_gate: "exponential" is the paper's; "sigmoid" has no normaliser, so that n and m stay
          zero and eps is unused.
      chunk_size: tokens that a chunkwise backend handles at once (None: chosen from T, K, V).
      eps: is added to the stabilised denominator.
      backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Gradients are exact for all inputs and the initial state. The returned m carries none: the true
    state C·exp(m) needs none. Raises ValueError for shapes that do not fit, NotImplementedError
    where the backend can't serve the call. Source: arXiv 2405.04517, equations 19-27 and appendix
    A.3; the sigmoid gate: arXiv 2503.14376.
    """
    _check_shapes(q, k, v, i, f, initial_state, segment_ids, previous_segment)
    if input_gate not in ("exponential", "sigmoid"):
        raise ValueError(
            f'mlstm: input_gate is {input_gate!r}; it must be "exponential" or "sigmoid".'
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"mlstm: chunk_size is {chunk_size}; it must be at least 1, or None.")

    dtype = state_dtype(q, k, v, i, f)
    normalise = input_gate == "exponential"
    starts = padding = None
    if segment_ids is not None:
        starts, padding = segment_borders(segment_ids, previous_segment)
        q, k, v = (jnp.where(padding[..., None, None], 0, x) for x in (q, k, v))
    log_i, log_f = log_gates(i, f, padding, dtype, normalise)
    state = (
        None
        if initial_state is None
        else starting_state(initial_state, q.shape, v.shape[-1], dtype, normalise)
    )

    order = STEP_ORDER if q.shape[1] == 1 else ORDER
    h, state = dispatch(
        "mlstm", BACKENDS, backend, order,
        Call(q, k, v, log_i, log_f, state, starts), Options(normalise, chunk_size, eps),
    )  # fmt: skip
    return h, state._replace(m=jax.lax.stop_gradient(state.m))


def starting_state(
    state: MLSTMState | None,
    q_shape: tuple[int, ...],
    value_dim: int,
    dtype: jnp.dtype,
    normalise: bool,
) -> MLSTMState:
    """The given state in the type of the computation, or the empty one; n and m are zero where
    there is no normaliser.
    """
    batch, _, heads, key_dim = q_shape
    empty = MLSTMState.empty(batch, heads, key_dim, value_dim, dtype)
    if state is None:
        return empty
    state = MLSTMState(*(x.astype(dtype) for x in state))
    return state if normalise else empty._replace(C=state.C)


def _check_shapes(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    state: MLSTMState | None,
    segment_ids: Array | None,
    previous_segment: Array | None,
) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from q's and v's."""
    if q.ndim != 4 or v.ndim != 4 or 0 in q.shape + v.shape:
        raise ValueError(
            f"mlstm: q has shape {q.shape} and v {v.shape}; they must be [B T H K] and [B T H V], "
            f"none of them 0."
        )
    batch, time, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    expected = {
        "k": (k, (batch, time, heads, key_dim)),
        "v": (v, (batch, time, heads, value_dim)),
        "i": (i, (batch, time, heads)),
        "f": (f, (batch, time, heads)),
        "segment_ids": (segment_ids, (batch, time)),
        "previous_segment": (previous_segment, (batch,)),
    }
    if state is not None:
        expected["initial_state.C"] = (state.C, (batch, heads, key_dim, value_dim))
        expected["initial_state.n"] = (state.n, (batch, heads, key_dim))
        expected["initial_state.m"] = (state.m, (batch, heads))
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"mlstm: {name} has shape {array.shape}; with q {q.shape} and v {v.shape} it must "
                f"be {shape}."
            )
