"""`mlstm_front`: checks a call, finds every token's neighbours, and chooses the backend."""

from types import MappingProxyType

from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.mlstm_front.call import Call, Front, Inner
from pallas_kernels.mlstm_front.pallas_triton import mlstm_front_pallas_triton
from pallas_kernels.mlstm_front.places import inputs_at
from pallas_kernels.mlstm_front.reference import mlstm_front_reference
from pallas_kernels.typing import LastSegment, SegmentIds

# A backend takes a Call and returns a Front. A Pallas backend joins here.
BACKENDS = MappingProxyType(
    {"reference": mlstm_front_reference, "pallas_triton": mlstm_front_pallas_triton}
)

# What backend=None tries, by device family (dispatch.py).
ORDER = MappingProxyType(
    {
        "tpu": ("reference",),
        "hopper": ("pallas_triton", "reference"),
        "gpu": ("pallas_triton", "reference"),
        "cpu": ("reference",),
    }
)


def mlstm_front(
    u: Inner,
    conv_kernel: Float[Array, "W I"],
    conv_bias: Float[Array, " I"],
    query: Float[Array, "N i i"],
    key: Float[Array, "N i i"],
    value: Float[Array, "N i i"],
    gate_kernel: Float[Array, "3*I G"],
    gate_bias: Float[Array, " G"],
    window: Float[Array, "B W-1 I"] | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    backend: Backend = None,
) -> tuple[Front, Float[Array, "B W-1 I"]]:
    """What stands before the cell in the paper's mLSTM block: c = SiLU(conv(u)), q = Q c, k = K c,
    v = V u and the gates' pre-activations, linear in q, k and v; and the convolution's window after
    the last token.

    Q, K and V are block-diagonal, with N blocks of i neighbouring channels; a block's output o is
    sum_i x_i kernel[n, i, o]. c, q, k and v have the type of u, gates that of sums: float32,
    float64 where an input is.
      window: the last W-1 inputs before u; None for zeros.
      segment_ids: a token meets inputs of its own document only; a negative id is padding, which
          the convolution looks through and for which c, q and k are 0. See places.py.
      previous_segment: the id that the window ended with; used with segment_ids only.
      backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Cutting a sequence anywhere changes nothing. Gradients are exact for all inputs and the window;
    "reference" also has forward and second ones. Raises ValueError for shapes that do not fit,
    NotImplementedError where the backend can't serve the call. Source: arXiv 2405.04517, figure 11.
    """
    _check(
        u, conv_kernel, conv_bias, query, key, value, gate_kernel, gate_bias, window, segment_ids,
        previous_segment,
    )  # fmt: skip
    reach = conv_kernel.shape[0] - 1
    call = Call(
        u, window if reach else None, conv_kernel, conv_bias, query, key, value, gate_kernel,
        gate_bias, segment_ids, previous_segment,
    )  # fmt: skip
    front = dispatch("mlstm_front", BACKENDS, backend, ORDER, call)
    after = inputs_at(u, call.window, reach, call.places().last)
    return front, after if window is None else after.astype(window.dtype)


def _check(
    u: Array,
    conv_kernel: Array,
    conv_bias: Array,
    query: Array,
    key: Array,
    value: Array,
    gate_kernel: Array,
    gate_bias: Array,
    window: Array | None,
    segment_ids: Array | None,
    previous_segment: Array | None,
) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from u's."""
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"mlstm_front: u has shape {u.shape}; it must be [B T I], none of them 0.")
    batch, time, channels = u.shape
    if conv_kernel.ndim != 2 or not conv_kernel.shape[0]:
        raise ValueError(
            f"mlstm_front: conv_kernel has shape {conv_kernel.shape}; it must be [W I], W at least "
            "1."
        )
    size = query.shape[-1] if query.ndim else 0
    if query.ndim != 3 or not size or query.shape != (channels // size, size, size):
        raise ValueError(
            f"mlstm_front: query has shape {query.shape}; with u {u.shape} it must be [N i i] with "
            f"N times i = {channels}."
        )
    expected = {
        "conv_kernel": (conv_kernel, (conv_kernel.shape[0], channels)),
        "conv_bias": (conv_bias, (channels,)),
        "key": (key, query.shape),
        "value": (value, query.shape),
        "gate_kernel": (gate_kernel, (3 * channels, *gate_bias.shape)),
        "window": (window, (batch, conv_kernel.shape[0] - 1, channels)),
        "segment_ids": (segment_ids, (batch, time)),
        "previous_segment": (previous_segment, (batch,)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"mlstm_front: {name} has shape {array.shape}; with u {u.shape} it must be {shape}."
            )
