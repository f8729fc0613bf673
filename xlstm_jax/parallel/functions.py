"""What the compiler can't spread over a mesh by itself: the cells and the convolution, each device
with its own part.

The layers call these by the names of the plain functions; without a mesh in context they are the
plain functions.
"""

import functools
from collections.abc import Callable
from typing import Any

from pallas_kernels import sharded
from xlstm_jax.parallel.axes import mesh_axes, mesh_in_trace, partition_spec, spread_axes


def mlstm(*arrays: Any, **options: Any) -> Any:
    """`pallas_kernels.mlstm`, its batch, heads and time spread over the mesh in context."""
    return sharded.mlstm(*arrays, **_cell_axes(), **options)


def slstm(*arrays: Any, **options: Any) -> Any:
    """`pallas_kernels.slstm`, its batch and heads spread over the mesh in context; its time can't
    be.
    """
    return sharded.slstm(*arrays, **_cell_axes(), **options)


def _cell_axes() -> dict[str, tuple[str, ...] | None]:
    names = {"batch_axis": "batch", "head_axis": "heads", "sequence_axis": "time"}
    return {argument: mesh_axes(name) or None for argument, name in names.items()}


def on_own_part(function: Callable, *arrays: Any, axes: Any, out_axes: Any) -> Any:
    """function(*arrays, sequence_axis=...), every device with its own part of the arrays, on the
    mesh in context.

    axes and out_axes hold the logical axes of each array and each result; an array may be None. The
    first array's second axis is the time: sequence_axis names the mesh axes that it is spread over
    (None: it is whole), for what has to be asked of other devices.
    """
    mesh = mesh_in_trace()
    if not spread_axes(mesh):
        return function(*arrays, sequence_axis=None)
    sizes = {
        name: size
        for names, x in zip(axes, arrays, strict=True)
        if x is not None
        for name, size in zip(names, x.shape, strict=True)
    }
    in_specs = tuple(
        partition_spec(names, tuple(sizes.get(name, 1) for name in names), mesh) for names in axes
    )
    out_specs = tuple(
        partition_spec(names, tuple(sizes.get(name, 1) for name in names), mesh)
        for names in out_axes
    )
    part = functools.partial(function, sequence_axis=in_specs[0][1])
    return sharded.on_parts(part, mesh, in_specs, out_specs)(*arrays)
