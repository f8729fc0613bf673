"""What depends on the device that a program is compiled for: its name, the compute dtype."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels.chips import chip_of
from xlstm_jax.errors import UserError
from xlstm_jax.parallel.axes import mesh_in_trace, spread_axes

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


def device_memory() -> float | None:
    """Bytes of one device's memory, of the mesh in context as in `platform`; None where that is not
    known (`pallas_kernels.chips`).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    chip = chip_of(device.device_kind)
    return chip and chip.memory


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
