"""What the device that a program is lowered for decides."""

import jax
import jax.numpy as jnp


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in context, topology meshes included, else of the default device.

    `jax.default_backend()` says cpu while a program is compiled ahead of time for another device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.devices()[0].platform


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of `model.dtype`; "auto" is bfloat16, on the CPU float32 (whose bfloat16 products are slow)."""
    if name == "auto":
        name = "float32" if platform() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def num_devices() -> int:
    """How many devices a program is spread over: those of the mesh in context, else one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size
