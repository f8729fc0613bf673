"""`mlstm_back` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, one backward (triton_norm.py).

Forward h, the gate and c are read once and y is written: 4 arrays of h's size. Backward dy and
these are read and their gradients are written: 7. Nothing but what was given is kept for it.
"""

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels import triton_norm
from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.triton_norm import Settings
from pallas_kernels.typing import state_dtype


def mlstm_back_pallas_triton(call: Call, options: Options) -> Inner:
    """The backend "pallas_triton": bfloat16, float16 and float32.

    Raises NotImplementedError for other types, one token, heads that are no sum of few powers of
    two of one size, and devices before sm_80.
    """
    mode, h = triton_mode(), call.h
    if h.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"h must be bfloat16, float16 or float32; it is {h.dtype}")
    if (high := state_dtype(*(x for x in call if x is not None))) != jnp.float32:
        raise NotImplementedError(f"it computes in float32; one of the inputs asks for {high}")
    if h.shape[0] * h.shape[1] == 1:
        raise NotImplementedError("it is for several tokens; of one, XLA makes as few kernels")
    settings = triton_norm.settings_for(
        "mlstm_back", mode, "a head", h.shape[-1], options.eps,
        center=options.center, activation=options.activation,
    )  # fmt: skip
    return _back(settings, call)


def _value(settings: Settings, call: Call) -> Inner:
    return triton_norm.forward(settings, *_rows(call)).reshape(call.gate.shape)


def _forward(settings: Settings, call: Call) -> tuple[Inner, Call]:
    return _value(settings, call), call


def _backward(settings: Settings, call: Call, dy: Inner) -> tuple[Call]:
    rows = _rows(call)
    dy = dy.reshape(rows.h.shape)
    dh, d_gate, *dc, (d_scale, *d_skip) = triton_norm.backward(settings, dy, *rows)
    gradients = (dh, d_scale, d_gate, *(dc or [None]), *(d_skip or [None]))
    pairs = zip(call, gradients, strict=True)
    return (Call(*(None if x is None else dx.reshape(x.shape).astype(x.dtype) for x, dx in pairs)),)


_back = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("mlstm_back", "pallas_triton"), name="operands"
)


def _rows(call: Call) -> Call:
    """Arrays of tokens as [R I], rows of weights in float32."""
    channels = call.scale.shape[0]

    def of(x: Array | None) -> Array | None:
        if x is None:
            return None
        return x.astype(jnp.float32) if x.ndim == 1 else x.reshape(-1, channels)

    return Call(*(of(x) for x in call))
