"""The device mesh and the one table that maps the layers' logical axes to it."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from xlstm_jax.config import MeshConfig
from xlstm_jax.errors import UserError

# Logical axis of a parameter -> mesh axis. Layers name the left side only.
LOGICAL_AXIS_RULES = (
    ("layers", None),
    ("embed", "fsdp"),
    ("inner", "tensor"),
    ("ffn", "tensor"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("gates", None),
    ("head_dim", None),
    ("head_dim_out", None),
    ("taps", None),
    ("block_in", None),
    ("block_out", None),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh of `devices` (default: all) with the axes data, fsdp, tensor, sequence; one size may be -1, "what is left".

    The axes are Auto: jax's default, Explicit, makes linen's sharding constraints fail. Without a -1 a single process may use fewer
    devices than there are: the first ones.

    Raises:
        UserError: the sizes' product does not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes.values())
    if -1 not in sizes.values() and jax.process_count() == 1:
        devices = devices[:fixed]
    if math.prod(shape) != len(devices):
        raise UserError(
            f"config section mesh is {sizes}, which does not fit {len(devices)} devices; the product must be their number"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.sharding.Mesh(np.asarray(devices).reshape(shape), tuple(sizes), axis_types=axis_types)


def batch_sharding(mesh: jax.sharding.Mesh, batch_size: int) -> jax.sharding.NamedSharding:
    """Rows of a batch spread over the axes data and fsdp.

    Raises:
        UserError: the rows can't be dealt out evenly.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise UserError(f"a batch of {batch_size} can't be dealt out to {parts} devices; use a multiple, or set mesh.data")
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """A copy on every device."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
