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

from pallas_kernels.derivatives import in_32_bits, with_backward
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_back import pallas_triton_kernels as kernels
from pallas_kernels.mlstm_back.call import Options as Norm
from pallas_kernels.mlstm_back.pallas_triton import blocks_of, check_pieces, stretches_of
from pallas_kernels.mlstm_back.pallas_triton_kernels import Settings
from pallas_kernels.row_norm.call import Call, Options
from pallas_kernels.row_norm.plain import row_norm_plain
from pallas_kernels.typing import state_dtype

PROGRAMS = 1056  # about so many in the backward pass, where there are enough rows


def row_norm_pallas_triton(call: Call, options: Options) -> Float[Array, "R D"]:
    """The backend "pallas_triton". Forward and second derivatives are those of the definition.

    Raises NotImplementedError for float64, and a D that is no sum of few powers of two of one size.
    """
    mode, dim = triton_mode(), call.x.shape[1]
    if state_dtype(*call) != jnp.float32:
        raise NotImplementedError("it has no float64 numbers")
    blocks = blocks_of(dim)
    check_pieces("a row", dim, blocks)
    norm = Norm(options.eps, options.center, activation="none")
    return _norm((Settings("row_norm", mode, dim, norm, blocks), PROGRAMS), call)


Static = tuple[Settings, int]


@in_32_bits
def _value(static: Static, call: Call) -> Float[Array, "R D"]:
    return kernels.forward(static[0], call.x, call.scale.astype(jnp.float32))


def _plain(static: Static, call: Call) -> Float[Array, "R D"]:
    norm = static[0].options
    return row_norm_plain(call, Options(norm.eps, norm.center))


def _push(static: Static, call: Call, tangents: Any) -> Any:
    return jax.jvp(functools.partial(_plain, static), (call,), tangents)[1]


@in_32_bits
def _gradients(static: Static, call: Call, dy: Float[Array, "R D"]) -> Call:
    settings, programs = static
    stretches = stretches_of(settings, dy.shape, programs)
    scale = call.scale.astype(jnp.float32)
    dx, sums = kernels.backward(settings, stretches, dy, call.x, scale)
    return Call(dx, jnp.sum(sums, axis=(0, 1)).astype(call.scale.dtype))


def _plain_gradients(static: Static, call: Call, dy: Float[Array, "R D"]) -> Call:
    return jax.vjp(functools.partial(_plain, static), call)[1](dy)[0]


def _of_gradients(transform: Any) -> Any:
    """A derivative of the gradients: of the definition's."""

    def derivative(static: Static, arrays: tuple[Call, Array], vectors: Any) -> Any:
        return transform(functools.partial(_plain_gradients, static), arrays, vectors)

    return derivative


# Where a derivative is taken, each calls itself, as another may be taken of that one.
_kernel_gradients = with_backward(
    _gradients,
    lambda static, *arrays: (_kernel_gradients(static, *arrays), arrays),
    _of_gradients(lambda f, arrays, cotangent: jax.vjp(f, *arrays)[1](cotangent)),
    _of_gradients(lambda f, arrays, tangents: jax.jvp(f, arrays, tuple(tangents))[1]),
)
_norm = with_backward(
    _value,
    lambda static, call: (_norm(static, call), call),
    lambda static, call, dy: (_kernel_gradients(static, call, dy),),
    _push,
)
