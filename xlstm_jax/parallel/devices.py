"""What the device that a program is lowered for decides."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.parallel.axes import mesh_in_trace, spread_axes
from xlstm_jax.typing import Array, Float

FLOAT64_NEEDS_X64 = (
    "config key model.dtype is 'float64', which jax computes in float32 unless it is told "
    "otherwise; set the environment variable JAX_ENABLE_X64=1, or use 'float32'"
)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in context, topology meshes included, else of the default
     device.

    `jax.default_backend()` says cpu while a program is compiled ahead of time for another device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.devices()[0].platform


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of `model.dtype`; "auto" is bfloat16, on the CPU float32 (whose bfloat16 products
    are slow).

    Raises:
        UserError: float64 without jax's 64-bit mode.
    """
    if name == "auto":
        name = "float32" if platform() == "cpu" else "bfloat16"
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UserError(FLOAT64_NEEDS_X64)
    return jnp.dtype(name)


def num_devices() -> int:
    """How many devices the compiler spreads a program over: those of the mesh in context, manual
    axes left out; else one.
    """
    return math.prod(spread_axes(mesh_in_trace()).values())


def only_device(tree: Any) -> jax.Device | None:
    """The device that all leaves are on; None where there are several, or leaves that are no arrays
    or still being traced.
    """
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array) for leaf in leaves):
        return None
    devices = set().union(*(leaf.devices() for leaf in leaves))
    return devices.pop() if len(devices) == 1 else None


def has_room(device: jax.Device, size: int) -> bool:
    """Whether `size` bytes are at most half of what is free on a device; False where it doesn't
    tell.
    """
    memory = device.memory_stats() or {}
    return 2 * size <= memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)


def rows_in_place(x: Float[Array, "N *D"]) -> list[Float[Array, "*D"]]:
    """x[0], x[1], ... of an array on a CPU, as arrays that share its memory; rows that are not
    aligned to 64 bytes are copied.
    """
    (device,) = x.devices()
    return [
        jax.device_put(row, device if x.committed else None, may_alias=True)
        for row in np.asarray(x)
    ]
