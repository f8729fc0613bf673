"""`mlstm_front`: checks a call and chooses the backend."""

from types import MappingProxyType

from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.mlstm_front.call import Call, Front, Inner
from pallas_kernels.mlstm_front.pallas_tpu import mlstm_front_pallas_tpu
from pallas_kernels.mlstm_front.pallas_triton import mlstm_front_pallas_triton
from pallas_kernels.mlstm_front.reference import mlstm_front_reference

# A backend takes a Call and returns a Front. A Pallas backend joins here.
BACKENDS = MappingProxyType(
    {
        "reference": mlstm_front_reference,
        "pallas_triton": mlstm_front_pallas_triton,
        "pallas_tpu": mlstm_front_pallas_tpu,
    }
)

# What backend=None tries, by device family (dispatch.py).
ORDER = MappingProxyType(
    {
        "tpu": ("pallas_tpu", "reference"),
        "hopper": ("pallas_triton", "reference"),
        "gpu": ("pallas_triton", "reference"),
        "cpu": ("reference",),
    }
)


def mlstm_front(
    c: Inner,
    u: Inner,
    query: Float[Array, "N i i"],
    key: Float[Array, "N i i"],
    value: Float[Array, "N i i"],
    gate_kernel: Float[Array, "3*I G"],
    gate_bias: Float[Array, " G"],
    *,
    backend: Backend = None,
) -> Front:
    """What stands between convolution and cell in the paper's mLSTM block: q = Q c, k = K c,
    v = V u and the gates' pre-activations, linear in q, k and v. u is what enters the convolution,
    c what leaves it and its SiLU.

    Q, K and V are block-diagonal, with N blocks of i neighbouring channels; a block's output o is
    sum_i x_i kernel[n, i, o]. c, q, k and v have the type of u, gates that of sums: float32,
    float64 where an input is. Each token is by itself: nothing is known of documents here.
      backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Gradients are exact for all inputs; "reference" also has forward and second ones. Raises
    ValueError for shapes that do not fit, NotImplementedError where the backend can't serve the
    call. Source: arXiv 2405.04517, figure 11.
    """
    call = Call(c, u, query, key, value, gate_kernel, gate_bias)
    _check(call)
    return dispatch("mlstm_front", BACKENDS, backend, ORDER, call)


def _check(call: Call) -> None:
    """Raises ValueError naming the first argument whose shape does not follow from u's."""
    u, query = call.u, call.query
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"mlstm_front: u has shape {u.shape}; it must be [B T I], none of them 0.")
    channels = u.shape[-1]
    size = query.shape[-1] if query.ndim else 0
    if query.ndim != 3 or not size or query.shape != (channels // size, size, size):
        raise ValueError(
            f"mlstm_front: query has shape {query.shape}; with u {u.shape} it must be [N i i] with "
            f"N times i = {channels}."
        )
    expected = {
        "c": u.shape,
        "key": query.shape,
        "value": query.shape,
        "gate_kernel": (3 * channels, *call.gate_bias.shape),
    }
    for name, shape in expected.items():
        if getattr(call, name).shape != shape:
            raise ValueError(
                f"mlstm_front: {name} has shape {getattr(call, name).shape}; with u {u.shape} it "
                f"must be {shape}."
            )
    if u.dtype != call.c.dtype:
        raise ValueError(f"mlstm_front: c is {call.c.dtype} and u {u.dtype}; they must be alike.")
