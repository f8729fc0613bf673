"""The norm of rows on NVIDIA GPUs in one kernel each way: a row is in registers from the first sum
to the result.

XLA makes one kernel of the norm of several rows forward, but three of it backward, and writes the
normed rows in float32 between them. Of one row it makes two forward (three where the mean is
subtracted), as the axis of a single row disappears and what is left is a number: there a launch
takes longer than the bytes, and of the kernels of a decoded token norms were a tenth.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import triton_norm
from pallas_kernels.derivatives import in_32_bits, with_backward
from pallas_kernels.interpret import triton_mode
from pallas_kernels.norm_of_heads import Given, Norm
from pallas_kernels.row_norm.call import Call, Options
from pallas_kernels.row_norm.plain import row_norm_plain
from pallas_kernels.triton_norm import Settings
from pallas_kernels.typing import state_dtype


def row_norm_pallas_triton(call: Call, options: Options) -> Float[Array, "R D"]:
    """The backend "pallas_triton". Forward and second derivatives are those of the definition.

    Raises NotImplementedError for float64, and a D that is no sum of few powers of two of one size.
    """
    mode, (eps, center) = triton_mode(), options
    if state_dtype(*call) != jnp.float32:
        raise NotImplementedError("it has no float64 numbers")
    dim = call.x.shape[1]
    norm = Norm(dim, eps, center, activation=None)
    return _norm(triton_norm.settings_for("row_norm", mode, "a row", norm), call)


@in_32_bits
def _value(settings: Settings, call: Call) -> Float[Array, "R D"]:
    return triton_norm.forward(settings, Given(call.x, call.scale.astype(jnp.float32)))


def _plain(settings: Settings, call: Call) -> Float[Array, "R D"]:
    return row_norm_plain(call, Options(settings.norm.eps, settings.norm.center))


def _push(settings: Settings, call: Call, tangents: Any) -> Any:
    return jax.jvp(functools.partial(_plain, settings), (call,), tangents)[1]


@in_32_bits
def _gradients(settings: Settings, call: Call, dy: Float[Array, "R D"]) -> Call:
    given = Given(call.x, call.scale.astype(jnp.float32))
    dx, (d_scale,) = triton_norm.backward(settings, dy, given)
    return Call(dx, d_scale.astype(call.scale.dtype))


def _plain_gradients(settings: Settings, call: Call, dy: Float[Array, "R D"]) -> Call:
    return jax.vjp(functools.partial(_plain, settings), call)[1](dy)[0]


def _pull_gradients(settings: Settings, arrays: tuple[Call, Array], cotangent: Call) -> Any:
    return jax.vjp(functools.partial(_plain_gradients, settings), *arrays)[1](cotangent)


def _push_gradients(settings: Settings, arrays: tuple[Call, Array], tangents: Any) -> Call:
    return jax.jvp(functools.partial(_plain_gradients, settings), arrays, tuple(tangents))[1]


# Where a derivative is taken, each calls itself, as another may be taken of that one.
_kernel_gradients = with_backward(
    _gradients,
    lambda settings, *arrays: (_kernel_gradients(settings, *arrays), arrays),
    _pull_gradients,
    _push_gradients,
)
_norm = with_backward(
    _value,
    lambda settings, call: (_norm(settings, call), call),
    lambda settings, call, dy: (_kernel_gradients(settings, call, dy),),
    _push,
)
