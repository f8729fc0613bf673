"""`slstm`: checks a call, finds the resets, and chooses the backend."""

from types import MappingProxyType

import jax
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.segments import segment_borders
from pallas_kernels.slstm.call import Call, Options
from pallas_kernels.slstm.pallas_gpu import slstm_pallas_gpu
from pallas_kernels.slstm.pallas_tpu import slstm_pallas_tpu
from pallas_kernels.slstm.recurrent import slstm_recurrent
from pallas_kernels.typing import LastSegment, SegmentIds, SLSTMState, Values, state_dtype

# A backend takes (Call, Options) and returns (h, state). A Pallas backend joins here.
BACKENDS = MappingProxyType(
    {"recurrent": slstm_recurrent, "pallas_tpu": slstm_pallas_tpu, "pallas_gpu": slstm_pallas_gpu}
)

# What backend=None tries for more than one token, by device family (dispatch.py). One token is a
# step of "recurrent" everywhere.
ORDER = MappingProxyType(
    {
        "tpu": ("pallas_tpu", "recurrent"),
        "hopper": ("pallas_gpu", "recurrent"),
        "gpu": ("recurrent",),
        "cpu": ("recurrent",),
    }
)


def slstm(
    x: Float[Array, "B T 4 H V"],
    recurrent_kernel: Float[Array, "4 H V V"],
    bias: Float[Array, "4 H V"],
    initial_state: SLSTMState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    recurrent_gradient_clip: float | None = None,
    backend: Backend = None,
) -> tuple[Values, SLSTMState]:
    """Runs the sLSTM over a sequence and returns its outputs `[B T H V]` and the state after the
    last token.

    x is W·input for the gates in the order i, f, z, o; h_{t-1} is mixed in by
    einsum("bhv,ghvw->bghw", h, recurrent_kernel). States are float32, float64 when any input is;
    the outputs have x's type. From an empty state (n = 0) m_1 = i_1, so that n_1 = 1.
      segment_ids: drops the state between documents; a negative id is padding (output 0, state
          untouched). See segments.py.
      previous_segment: the id that initial_state ended with; used with segment_ids only.
      recurrent_gradient_clip: bound on each entry of the gradient that reaches h_{t-1} through the
        recurrent kernel (the paper's training uses 10); None leaves the gradients exact.
      backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Gradients are exact for all inputs and the initial state. The returned m carries none: the true
    state c·exp(m) needs none. Raises ValueError for shapes that do not fit, NotImplementedError
    where the backend can't serve the call. Source: arXiv 2405.04517, equations 8-17 and appendix
    A.2.
    """
    _check_shapes(x, recurrent_kernel, bias, initial_state, segment_ids, previous_segment)
    if recurrent_gradient_clip is not None and not recurrent_gradient_clip > 0:
        raise ValueError(
            f"slstm: recurrent_gradient_clip is {recurrent_gradient_clip}; it must be positive, or "
            f"None."
        )
    dtype = state_dtype(x, recurrent_kernel, bias)
    batch, _, _, heads, value_dim = x.shape
    if initial_state is None:
        state = SLSTMState.empty(batch, heads, value_dim, dtype)
    else:
        state = SLSTMState(*(part.astype(dtype) for part in initial_state))
    starts = padding = None
    if segment_ids is not None:
        starts, padding = segment_borders(segment_ids, previous_segment)
    order = ("recurrent",) if x.shape[1] == 1 else ORDER
    h, state = dispatch(
        "slstm", BACKENDS, backend, order,
        Call(x, recurrent_kernel, bias, state, starts, padding), Options(recurrent_gradient_clip),
    )  # fmt: skip
    return h, state._replace(m=jax.lax.stop_gradient(state.m))


def _check_shapes(
    x: Array,
    recurrent_kernel: Array,
    bias: Array,
    state: SLSTMState | None,
    segment_ids: Array | None,
    previous_segment: Array | None,
) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from x's."""
    if x.ndim != 5 or x.shape[2] != 4 or 0 in x.shape:
        raise ValueError(f"slstm: x has shape {x.shape}; it must be [B T 4 H V], none of them 0.")
    batch, time, _, heads, value_dim = x.shape
    expected = {
        "recurrent_kernel": (recurrent_kernel, (4, heads, value_dim, value_dim)),
        "bias": (bias, (4, heads, value_dim)),
        "segment_ids": (segment_ids, (batch, time)),
        "previous_segment": (previous_segment, (batch,)),
    }
    for name, part in zip(SLSTMState._fields, state or (), strict=False):
        expected[f"initial_state.{name}"] = (part, (batch, heads, value_dim))
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"slstm: {name} has shape {array.shape}; with x {x.shape} it must be {shape}."
            )
