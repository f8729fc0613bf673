"""What the device that a program is lowered for decides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.typing import Array, Float


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


def on_one_cpu(tree: Any) -> bool:
    """Whether all leaves are arrays in the memory of one CPU device, where `rows_in_place` costs nothing."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array) for leaf in leaves):
        return False
    devices = set().union(*(leaf.devices() for leaf in leaves))
    return len(devices) == 1 and devices.pop().platform == "cpu"


def rows_in_place(x: Float[Array, "N *D"]) -> list[Float[Array, "*D"]]:
    """x[0], x[1], ... as arrays that share the memory of x, which is `on_one_cpu`; rows that are not aligned to 64 bytes are copied."""
    (device,) = x.devices()
    memory = np.asarray(x)
    return [jax.device_put(row, device if x.committed else None, may_alias=True) for row in memory]
