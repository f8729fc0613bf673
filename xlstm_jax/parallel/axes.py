"""The one table that maps the layers' logical axes to the mesh, and what is read from it.

Everything here works on the mesh in context (`jax.set_mesh`), so that a program traced without one
is the program of one device. A mesh axis that does not divide a dimension, or that another
dimension of the same array has already, is left out of that dimension.
"""

import math

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from xlstm_jax.typing import Array

# Logical axis -> mesh axes. Layers name the left side only.
LOGICAL_AXIS_RULES = {
    # of activations
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "channels": (),  # of the residual stream
    # of parameters; those that end in a mesh axis other than fsdp name activations' axes too
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
    "block_in": (),
    "block_out": (),
}


def mesh_axes(name: str | None) -> tuple[str, ...]:
    """The axes of the mesh in context that a logical axis is spread over, those of one device left
    out.
    """
    return _mesh_axes(name, jax.sharding.get_abstract_mesh())


def num_shards(*names: str) -> int:
    """Over how many devices the logical axes are spread, together."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for name in names for axis in mesh_axes(name))


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
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh))


def gathered(parameter: Array, *names: str | None) -> Array:
    """A parameter as a product needs it: whole along the axis fsdp, spread over the others as
    before.

    For those whose use does not tell: a lookup, an elementwise product. The kernel of a projection
    is better left alone: the compiler gathers it for each product, forward and back, where this
    would keep the gathered kernels of all blocks for the way back.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return constrain(
        parameter, *(None if "fsdp" in _mesh_axes(name, mesh) else name for name in names)
    )


def _mesh_axes(name: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    axes = () if name is None else LOGICAL_AXIS_RULES[name]
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
