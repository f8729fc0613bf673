"""The norm of one row on NVIDIA GPUs in one kernel: the row is in registers from the first sum to
the result.

XLA makes one kernel of the norm of several rows, but of one row's two (three where the mean is
subtracted), as the axis of a single row disappears and what is left is a number. A launch takes
longer than either: of the kernels of a decoded token they are a tenth.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.derivatives import in_32_bits, with_backward
from pallas_kernels.interpret import triton_mode
from pallas_kernels.row_norm.call import Call, Options
from pallas_kernels.row_norm.plain import row_norm_plain

LONGEST, MOST_TILES, WARPS = 4096, 16, 8


def row_norm_pallas_triton(call: Call, options: Options) -> Float[Array, "1 D"]:
    """The backend "pallas_triton"; derivatives are those of the definition.

    Raises NotImplementedError for several rows, float64, and a D that is no sum of few powers of
    two of one size.
    """
    mode = triton_mode()
    rows, dim = call.x.shape
    if rows > 1:
        raise NotImplementedError("it is for one row, XLA makes one kernel of several")
    if jnp.float64 in (call.x.dtype, call.scale.dtype):
        raise NotImplementedError("it has no float64 numbers")
    if dim // _tile(dim) > MOST_TILES:
        raise NotImplementedError(
            f"D must be at most {MOST_TILES} times a power of two up to {LONGEST}; it is {dim}"
        )
    return _norm((mode, options), call)


def _tile(dim: int) -> int:
    """The longest power of two that divides D."""
    return min(dim & -dim, LONGEST)


def _value(static: tuple[Any, Options], call: Call) -> Float[Array, "1 D"]:
    # imported here, because only this backend needs it; jaxlib without a GPU has it too
    from jax.experimental.pallas import triton

    interpret, (eps, center) = static
    dim, size = call.x.shape[1], _tile(call.x.shape[1])
    tiles = [pl.ds(start, size) for start in range(0, dim, size)]

    def row_norm(x, scale, y):
        parts = [x[tile].astype(jnp.float32) for tile in tiles]
        if center:
            mean = sum(map(jnp.sum, parts)) / dim
            parts = [part - mean for part in parts]
        rate = lax.rsqrt(sum(jnp.sum(part * part) for part in parts) / dim + eps)
        for tile, part in zip(tiles, parts, strict=True):
            y[tile] = (part * rate * scale[tile]).astype(y.dtype)

    row, whole = pl.BlockSpec((None, dim), lambda i: (i, 0)), pl.BlockSpec((dim,), lambda i: (0,))
    return pl.pallas_call(
        row_norm,
        grid=(1,),
        in_specs=[row, whole],
        out_specs=row,
        out_shape=jax.ShapeDtypeStruct(call.x.shape, call.x.dtype),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS),
    )(*call)


def _push(static: tuple[Any, Options], call: Call, tangents: Any) -> Any:
    return jax.jvp(functools.partial(row_norm_plain, options=static[1]), (call,), tangents)[1]


def _backward(static: tuple[Any, Options], call: Call, cotangent: Any) -> Any:
    return jax.vjp(functools.partial(row_norm_plain, options=static[1]), call)[1](cotangent)


_norm = with_backward(
    in_32_bits(_value),
    lambda static, call: (in_32_bits(_value)(static, call), call),
    _backward,
    _push,
)
