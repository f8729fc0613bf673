"""The one table that maps the layers' logical axes to the mesh, and what is read from it.

Everything here works on the mesh in context (`jax.set_mesh`), so that a program traced without one
is the program of one device. A mesh axis that does not divide a dimension, or that another
dimension of the same array has already, is left out of that dimension. So are the axes that a
`jax.shard_map` around the model has made manual: arrays are then that device's part already, and
the axes are the caller's.
"""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from xlstm_jax.errors import UserError
from xlstm_jax.typing import Array

LOGICAL_AXIS_RULES = {
    # of activations
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "tokens": ("data", "fsdp", "sequence"),  # rows and time as one axis
    "channels": (),  # of the residual stream
    # of parameters; inner, ffn, vocab and heads are axes of activations too
    "embed": ("fsdp",),
    "inner": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
    "positions": (),
    "features": (),
    "heads": ("tensor",),
    "layers": (),
    "gates": (),
    "gate_inputs": (),  # the kernels of the mLSTM's gates are small: whole everywhere
    "gate_heads": (),
    "head_dim": ("fsdp",),
    "head_dim_out": (),
    "taps": (),
    "rank": (),  # of a product of two narrow kernels
    "state": (),  # numbers that a channel of a state-space model remembers
    "block_in": (),
    "block_out": (),
}
"""Logical axis -> mesh axes. Layers name the left side only."""


def mesh_in_trace() -> AbstractMesh:
    """The mesh that the program being traced is for (`jax.set_mesh`); empty where there is none.

    Raises:
        UserError: an axis of it is Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in mesh.axis_types:
        raise UserError(
            f"the mesh in context has the axes {', '.join(mesh.axis_names)}, some of type Explicit "
            f"(the default of jax.make_mesh). The layers leave it to the compiler how arrays are "
            f"spread: make the mesh with axis_types=(jax.sharding.AxisType.Auto,) * "
            f"{len(mesh.axis_names)}, or with xlstm_jax.parallel.make_mesh"
        )
    return mesh


def spread_axes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """The axes that the compiler spreads arrays over, with their sizes: those of several devices,
    manual ones left out.
    """
    return {
        name: size
        for (name, size), kind in zip(mesh.shape.items(), mesh.axis_types, strict=True)
        if size > 1 and kind != AxisType.Manual
    }


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The axes of the mesh in context that a logical axis is spread over, those of one device left
    out.
    """
    return _mesh_axes(name, mesh_in_trace())


def num_shards(*names: str) -> int:
    """Over how many devices the logical axes are spread, together."""
    mesh = mesh_in_trace()
    return math.prod(mesh.shape[axis] for name in names for axis in _mesh_axes(name, mesh))


def partition_spec(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> P:
    """How an array with these logical axes is spread over a mesh."""
    entries, used = [], set()
    for name, size in zip(names, shape, strict=True):
        axes = tuple(axis for axis in _mesh_axes(name, mesh) if axis not in used)
        if size % math.prod(mesh.shape[axis] for axis in axes):
            axes = ()
        used.update(axes)
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return P(*entries)


def constrain(x: Array, *names: str | None) -> Array:
    """x, spread over the mesh in context as its logical axes say; None leaves a dimension whole."""
    mesh = mesh_in_trace()
    if not spread_axes(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh))


def gathered(parameter: Array, *names: str | None) -> Array:
    """A parameter as a product needs it: whole along the axis fsdp, spread over the others as
    before.

    For lookups and elementwise products, of which the compiler can't infer that it has to gather.
    Leave the kernel of a projection alone: the compiler gathers it for each product, in the forward
    and again in the backward pass. Gathered by this function, the whole kernels of all blocks would
    be kept in memory from one pass to the other.
    """
    mesh = mesh_in_trace()
    return constrain(
        parameter, *(None if "fsdp" in _mesh_axes(name, mesh) else name for name in names)
    )


def _mesh_axes(name: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    if name is not None and name not in LOGICAL_AXIS_RULES:
        raise UserError(
            f"a layer names the logical axis {name!r}; there are {', '.join(LOGICAL_AXIS_RULES)} "
            "(xlstm_jax/parallel/axes.py)"
        )
    axes = () if name is None else LOGICAL_AXIS_RULES[name]
    return tuple(axis for axis in axes if axis in spread_axes(mesh))
