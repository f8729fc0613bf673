"""`mlstm_back`: checks a call and chooses the backend."""

from types import MappingProxyType

from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.mlstm_back.pallas_tpu import mlstm_back_pallas_tpu
from pallas_kernels.mlstm_back.pallas_triton import mlstm_back_pallas_triton
from pallas_kernels.mlstm_back.reference import ACTIVATIONS, mlstm_back_reference
from pallas_kernels.typing import Values

# A backend takes a Call and Options and returns y. A Pallas backend joins here.
BACKENDS = MappingProxyType(
    {
        "reference": mlstm_back_reference,
        "pallas_triton": mlstm_back_pallas_triton,
        "pallas_tpu": mlstm_back_pallas_tpu,
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


def mlstm_back(
    h: Values,
    scale: Float[Array, " I"],
    gate: Inner,
    c: Inner | None = None,
    skip: Float[Array, " I"] | None = None,
    *,
    eps: float,
    activation: str,
    center: bool = True,
    backend: Backend = None,
) -> Inner:
    """What stands behind the cell in an mLSTM block: y = (norm(h) * scale + skip * c) times the
    gate, whose pre-activations are given. `[B T I]` in the type of h.

    h `[B T H V]`, I = H V. The norm is of each head: its values over the root of their variance
    plus eps, after subtracting their mean if `center` (else over that of their mean square).
    activation: "silu" (the paper's block, 2405.04517 figure 11) or "sigmoid" (the 7B block's output
        gate, which has no c).
    backend: None (the best that serves the call on the device the program is lowered for, see
        ORDER), a name of BACKENDS, or a tuple of names to try in order.
    Gradients are exact for all arrays; "reference" also has forward and second ones. Raises
    ValueError for shapes that do not fit and for other activations, NotImplementedError where the
    backend can't serve the call.
    """
    call = Call(h, scale, gate, c, skip)
    _check(call, activation)
    options = Options(eps, center, activation)
    return dispatch("mlstm_back", BACKENDS, backend, ORDER, call, options)


def _check(call: Call, activation: str) -> None:
    """Raises ValueError naming the first argument that does not follow from h."""
    h = call.h
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"mlstm_back: activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}."
        )
    if h.ndim != 4 or 0 in h.shape:
        raise ValueError(
            f"mlstm_back: h has shape {h.shape}; it must be [B T H V], none of them 0."
        )
    if (call.c is None) != (call.skip is None):
        given, missing = ("skip", "c") if call.c is None else ("c", "skip")
        raise ValueError(
            f"mlstm_back: {given} is given and {missing} is not; give both or neither."
        )
    inner = (*h.shape[:2], h.shape[2] * h.shape[3])
    expected = {"scale": inner[2:], "gate": inner, "c": inner, "skip": inner[2:]}
    for name, shape in expected.items():
        x = getattr(call, name)
        if x is not None and x.shape != shape:
            raise ValueError(
                f"mlstm_back: {name} has shape {x.shape}; with h {h.shape} it must be {shape}."
            )
        if len(shape) == 3 and x is not None and x.dtype != h.dtype:
            raise ValueError(
                f"mlstm_back: {name} is {x.dtype} and h {h.dtype}; they must be alike."
            )
