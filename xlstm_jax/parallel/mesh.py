"""The device mesh, and where batches lie on it."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from xlstm_jax.errors import UserError
from xlstm_jax.progress import counted
from xlstm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; at most one is -1, which takes what is left."""

    data: int = setting(-1, "replicas that share the rows of a batch", may_change=True)
    fsdp: int = setting(1, "parts of parameters, and of the rows too", may_change=True)
    tensor: int = setting(1, "parts of heads and inner channels", may_change=True)
    sequence: int = setting(1, "parts of the time", may_change=True)

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        wrong = any(size != -1 and size < 1 for size in sizes.values())
        if wrong or sum(size == -1 for size in sizes.values()) > 1:
            raise UserError(
                f"config section mesh is {sizes}; sizes must be positive, at most one may be -1 "
                "(what is left)"
            )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh of `devices` (default: all) with the axes data, fsdp, tensor, sequence; one size may
    be -1, "what is left".

    The axes are Auto: jax's default, Explicit, makes linen's sharding constraints fail. Without a
    -1 a single process may use fewer devices than there are: the first ones.

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
            f"config section mesh is {sizes}, which does not fit "
            f"{counted(len(devices), 'device')}; the product must be their number"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.sharding.Mesh(_placed(devices, shape), tuple(sizes), axis_types=axis_types)


def _placed(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """The devices as an array of this shape, neighbours near one another; slices of a pod apart
    along the first axis that they divide.

    Slices are joined by the data centre's network, which is slow: data, the first axis, sends the
    least over it.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    axis = next((axis for axis, size in enumerate(shape) if size % slices == 0), None)
    if axis is None:
        raise UserError(
            f"{slices} slices divide none of the mesh's axes {shape}; make mesh.data a multiple of "
            f"{slices}"
        )
    between = tuple(slices if a == axis else 1 for a in range(len(shape)))
    within = tuple(size // factor for size, factor in zip(shape, between, strict=True))
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def batch_sharding(
    mesh: jax.sharding.Mesh,
    batch_size: int,
    context_length: int | None = None,
    *,
    accumulation_steps: int = 1,
) -> jax.sharding.NamedSharding:
    """Rows of a batch `[B T]` spread over the axes data and fsdp, its time over the axis sequence
    if a context_length is given.

    Raises:
        UserError: the tokens, or the rows of a micro-batch, can't be dealt out evenly.
    """
    parts, rows = _row_parts(mesh), batch_size // accumulation_steps
    if rows % parts:
        raise UserError(
            f"{counted(rows, 'row')} (data.batch_size {batch_size}, train.accumulation_steps "
            f"{accumulation_steps}) can't be dealt out to {parts} "
            "devices (mesh.data x mesh.fsdp); use a multiple, or a smaller mesh"
        )
    check_length(mesh, context_length)
    axes = ("data", "fsdp"), *(() if context_length is None else ("sequence",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def check_length(mesh: jax.sharding.Mesh, context_length: int | None) -> None:
    """Raises `UserError` where the axis sequence can't share samples of that many tokens evenly."""
    if context_length is not None and context_length % mesh.shape["sequence"]:
        raise UserError(
            f"samples of {context_length} tokens can't be dealt out to mesh.sequence "
            f"{mesh.shape['sequence']}; use a multiple"
        )


def filled_rows(mesh: jax.sharding.Mesh, rows: int) -> int:
    """The least number of rows from `rows` on that `batch_sharding` can deal out."""
    parts = _row_parts(mesh)
    return -(-rows // parts) * parts


def _row_parts(mesh: jax.sharding.Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def mesh_in_context() -> jax.sharding.Mesh | None:
    """The mesh that `jax.set_mesh` put there; not to be asked while a program is traced."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """A copy on every device."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
