"""`row_norm`: checks a call and chooses the backend."""

from types import MappingProxyType

from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, dispatch
from pallas_kernels.row_norm.call import Call, Options
from pallas_kernels.row_norm.pallas_triton import row_norm_pallas_triton
from pallas_kernels.row_norm.plain import row_norm_plain

BACKENDS = MappingProxyType({"plain": row_norm_plain, "pallas_triton": row_norm_pallas_triton})
ORDER = MappingProxyType(
    {
        "tpu": ("plain",),
        "hopper": ("pallas_triton", "plain"),
        "gpu": ("pallas_triton", "plain"),
        "cpu": ("plain",),
    }
)


def row_norm(
    x: Float[Array, "R D"],
    scale: Float[Array, " D"],
    eps: float,
    *,
    center: bool,
    backend: Backend = None,
) -> Float[Array, "R D"]:
    """Each row over the root of its mean square, after subtracting its mean if `center`, times the
    scale; in the type of x.

    Every derivative is right to any order. Raises ValueError for shapes that do not fit.
    """
    if x.ndim != 2 or scale.shape != x.shape[1:] or 0 in x.shape:
        raise ValueError(
            f"row_norm: x has shape {x.shape} and scale {scale.shape}; they must be [R D] and [D], "
            "none of them 0."
        )
    return dispatch("row_norm", BACKENDS, backend, ORDER, Call(x, scale), Options(eps, center))
