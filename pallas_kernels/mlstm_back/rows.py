"""`mlstm_back` from kernels that take all tokens as rows: what its Pallas backends have in common.

Forward h, the gate and c are read once and y is written: 4 arrays of h's size. Backward dy and
these are read and their gradients are written: 7. Nothing but what was given is kept for it.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.norm_of_heads import Given, Norm
from pallas_kernels.typing import require_type, state_dtype

# Of a backend: the module that has the kernels, `forward(settings, given)` and `backward(settings,
# dy, given)`, and what these are specialised on.
Kernels = tuple[ModuleType, Any]


def check(call: Call, *types: jnp.dtype) -> None:
    """Raises NotImplementedError for h of other types, and where sums in float64 are asked for."""
    require_type("h", call.h, types)
    if (high := state_dtype(*(x for x in call if x is not None))) != jnp.float32:
        raise NotImplementedError(f"it computes in float32; one of the inputs asks for {high}")


def norm_of(call: Call, options: Options) -> Norm:
    """What the kernels compute."""
    return Norm(call.h.shape[-1], options.eps, options.center, options.activation)


def with_kernels(op: str, backend: str) -> Any:
    """A backend's function of Kernels and a Call."""

    def value(kernels: Kernels, call: Call) -> Inner:
        module, settings = kernels
        return module.forward(settings, _rows(call)).reshape(call.gate.shape)

    def forward(kernels: Kernels, call: Call) -> tuple[Inner, Call]:
        return value(kernels, call), call

    def backward(kernels: Kernels, call: Call, dy: Inner) -> tuple[Call]:
        (module, settings), rows = kernels, _rows(call)
        dy = dy.reshape(rows.h.shape)
        dh, d_gate, *dc, (d_scale, *d_skip) = module.backward(settings, dy, rows)
        gradients = iter((dh, d_scale, d_gate, *dc, *d_skip))

        def of(x: Array | None) -> Array | None:
            return None if x is None else next(gradients).reshape(x.shape).astype(x.dtype)

        return (Call(*map(of, call)),)

    refusal = gradients_alone(op, backend)
    return with_first_backward_only(value, forward, backward, refusal, name="operands")


def _rows(call: Call) -> Given:
    """Arrays of tokens as [R I], rows of weights in float32."""
    channels = call.scale.shape[0]

    def of(x: Array | None) -> Array | None:
        if x is None:
            return None
        return x.astype(jnp.float32) if x.ndim == 1 else x.reshape(-1, channels)

    return Given(*(of(x) for x in call))
