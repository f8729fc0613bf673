"""The cells on a device mesh: any backend under `jax.shard_map`, each device with its part of
batch, heads and time.

A Pallas kernel can't be cut up by the compiler as an XLA program can: it has to be told. `mlstm`
and `slstm` here are those of the package with four more arguments, so that a layer needs to know of
no mesh:
  mesh: the mesh, None for the one in context (`jax.set_mesh`); without any the plain function runs.
  batch_axis, head_axis, sequence_axis: the mesh axis (or tuple of axes) that B, H and T are spread
      over; None for none.
An axis whose size does not divide its dimension is left out, and each of its devices computes all
of it: a single row, a single token. The initial and the last state are spread over batch and heads,
and the same on all devices of the sequence axis.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pallas_kernels.mlstm import mlstm as mlstm_on_one_device
from pallas_kernels.mlstm.sequence_parallel import mlstm_sequence_parallel
from pallas_kernels.slstm import slstm as slstm_on_one_device
from pallas_kernels.typing import (
    Gates,
    Keys,
    LastSegment,
    MLSTMState,
    SegmentIds,
    SLSTMState,
    Values,
)

Axis = str | tuple[str, ...] | None


def mlstm(
    q: Keys,
    k: Keys,
    v: Values,
    i: Gates,
    f: Gates,
    initial_state: MLSTMState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    mesh: Mesh | AbstractMesh | None = None,
    batch_axis: Axis = None,
    head_axis: Axis = None,
    sequence_axis: Axis = None,
    **options: Any,
) -> tuple[Values, MLSTMState]:
    """`pallas_kernels.mlstm` with B, T and H spread over a mesh; other options go to it. See the
    module and sequence_parallel.py.
    """
    mesh = _mesh(mesh)
    rows, time, heads, _ = q.shape
    batch, sequence, head = (
        _usable(mesh, axis, size)
        for axis, size in ((batch_axis, rows), (sequence_axis, time), (head_axis, heads))
    )

    def cell(q, k, v, i, f, state, segment_ids, previous_segment):
        documents = {"segment_ids": segment_ids, "previous_segment": previous_segment}
        if sequence is None:
            return mlstm_on_one_device(q, k, v, i, f, state, **documents, **options)
        return mlstm_sequence_parallel(
            q, k, v, i, f, state, axis_name=sequence, **documents, **options
        )

    tokens = P(batch, sequence, head)
    state = P(batch, head)
    specs = (tokens, tokens, tokens, tokens, tokens, state, P(batch, sequence), P(batch))
    run = cell if _is_one_device(mesh) else on_parts(cell, mesh, specs, (tokens, state))
    return run(q, k, v, i, f, initial_state, segment_ids, previous_segment)


def slstm(
    x: Float[Array, "B T 4 H V"],
    recurrent_kernel: Float[Array, "4 H V V"],
    bias: Float[Array, "4 H V"],
    initial_state: SLSTMState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    mesh: Mesh | AbstractMesh | None = None,
    batch_axis: Axis = None,
    head_axis: Axis = None,
    sequence_axis: Axis = None,
    **options: Any,
) -> tuple[Values, SLSTMState]:
    """`pallas_kernels.slstm` with B and H spread over a mesh; other options go to it.

    Raises:
        NotImplementedError: the sequence axis has more than one device.
    """
    mesh = _mesh(mesh)
    rows, time, _, heads, _ = x.shape
    if _usable(mesh, sequence_axis, time) is not None:
        raise NotImplementedError(
            f"slstm: the time can't be spread over the mesh axis {sequence_axis!r}. The output of "
            f"each token enters the gates of the next "
            "one (R h), so that nothing can be said of a part of the sequence before the part "
            "before it is done; spread batch or heads. "
            "The mLSTM is linear in its state and can."
        )
    batch, head = _usable(mesh, batch_axis, rows), _usable(mesh, head_axis, heads)

    def cell(x, recurrent_kernel, bias, state, segment_ids, previous_segment):
        return slstm_on_one_device(
            x,
            recurrent_kernel,
            bias,
            state,
            segment_ids=segment_ids,
            previous_segment=previous_segment,
            **options,
        )

    weights, state = P(None, head), P(batch, head)
    specs = (P(batch, None, None, head), weights, weights, state, P(batch), P(batch))
    run = (
        cell if _is_one_device(mesh) else on_parts(cell, mesh, specs, (P(batch, None, head), state))
    )
    return run(x, recurrent_kernel, bias, initial_state, segment_ids, previous_segment)


def _mesh(mesh: Mesh | AbstractMesh | None) -> Mesh | AbstractMesh | None:
    if mesh is None:
        mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def _own_axes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """The axes that arrays can be spread over, with their sizes: not those that a shard_map around
    this call has made manual.
    """
    manual = jax.sharding.AxisType.Manual
    return {
        name: size
        for (name, size), kind in zip(mesh.shape.items(), mesh.axis_types, strict=True)
        if kind != manual
    }


def _is_one_device(mesh: Mesh | AbstractMesh | None) -> bool:
    return mesh is None or math.prod(_own_axes(mesh).values()) == 1


def _usable(mesh: Mesh | AbstractMesh | None, axis: Axis, size: int) -> Axis:
    """The axis, or None where it has one device only or does not divide the dimension's size."""
    if mesh is None or axis is None:
        return None
    names = (axis,) if isinstance(axis, str) else axis
    missing = [name for name in names if name not in mesh.shape]
    if missing:
        raise ValueError(
            f"pallas_kernels.sharded: the mesh has the axes {', '.join(mesh.shape)}, not "
            f"{', '.join(missing)}."
        )
    if any(name not in _own_axes(mesh) for name in names):
        return None
    devices = math.prod(mesh.shape[name] for name in names)
    return axis if devices > 1 and size % devices == 0 else None


def on_parts(
    function: Callable, mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any
) -> Callable:
    """The function under shard_map, on every device's own parts; specs are trees of PartitionSpecs,
    none for a scalar.

    check_vma is off: Pallas kernels do not say over which axes their results vary. Without this
    check jax sums the gradient of an array over every axis that its spec does not name. Over an
    axis of one device that sum changes nothing and costs a copy, so such axes are named here.
    """
    own = _own_axes(mesh)
    single = tuple(name for name, size in own.items() if size == 1)

    def name_all(spec: P) -> P:
        first, *rest = spec or (None,)
        named = {
            name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))
        }
        first = first if isinstance(first, tuple) else () if first is None else (first,)
        return P(first + tuple(name for name in single if name not in named), *rest)

    in_specs, out_specs = jax.tree.map(
        name_all, (in_specs, out_specs), is_leaf=lambda x: isinstance(x, P)
    )
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(own),
        check_vma=False,
    )
