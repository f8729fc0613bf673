"""What the compiler can't spread over a mesh by itself: the cells and the convolution, each device
with its own part.

The layers call these by the names of the plain functions; without a mesh in context they are the
plain functions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from pallas_kernels import sharded
from pallas_kernels.attention import AttentionState
from pallas_kernels.attention import attention as attention_on_one_device
from pallas_kernels.dispatch import Backend
from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.linear_attention import linear_attention as linear_attention_on_one_device
from pallas_kernels.mlstm_back import mlstm_back as mlstm_back_on_one_device
from pallas_kernels.mlstm_front import Front
from pallas_kernels.mlstm_front import mlstm_front as mlstm_front_on_one_device
from pallas_kernels.row_norm import row_norm as row_norm_on_one_device
from xlstm_jax.parallel.axes import mesh_axes, mesh_in_trace, partition_spec, spread_axes


def mlstm(*arrays: Any, **options: Any) -> Any:
    """`pallas_kernels.mlstm`, its batch, heads and time spread over the mesh in context."""
    return sharded.mlstm(*arrays, **_cell_axes(), **options)


def slstm(*arrays: Any, **options: Any) -> Any:
    """`pallas_kernels.slstm`, its batch and heads spread over the mesh in context; its time can't
    be.
    """
    return sharded.slstm(*arrays, **_cell_axes(), **options)


def attention(
    q: Any,
    k: Any,
    v: Any,
    state: AttentionState | None = None,
    *,
    segment_ids: Any = None,
    previous_segment: Any = None,
    backend: str | None = None,
) -> tuple[Any, AttentionState | None]:
    """`pallas_kernels.attention`, its batch and heads spread over the mesh in context; its time is
    not.
    """

    def part(q, k, v, ids, previous, *cache, sequence_axis):
        del sequence_axis
        before = AttentionState(*cache) if cache else None
        y, after = attention_on_one_device(
            q, k, v, before, segment_ids=ids, previous_segment=previous, backend=backend
        )
        return (y, *after) if cache else (y,)

    heads, rows = ("batch", None, "heads", None), ("batch",)
    cache_axes = () if state is None else (heads, heads, rows)
    # The axis "heads" has the size H in q and G in k and v, which come later, so that G counts. A
    # mesh axis that divides G divides H too.
    y, *after = on_own_part(
        part,
        *(q, k, v, segment_ids, previous_segment, *(state or ())),
        axes=(heads, heads, heads, ("batch", None), rows, *cache_axes),
        out_axes=(heads, *cache_axes),
    )
    return y, AttentionState(*after) if after else None


def linear_attention(
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: LinearAttentionState | None = None,
    *,
    bonus: Any = None,
    segment_ids: Any = None,
    previous_segment: Any = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Any, LinearAttentionState]:
    """`pallas_kernels.linear_attention`, its batch and heads spread over the mesh in context; its
    time is not.
    """

    def part(q, k, v, decay, bonus, ids, previous, S, *, sequence_axis):
        del sequence_axis
        o, after = linear_attention_on_one_device(
            q, k, v, decay, None if S is None else LinearAttentionState(S), bonus=bonus,
            segment_ids=ids, previous_segment=previous, chunk_size=chunk_size, backend=backend,
        )  # fmt: skip
        return o, after.S

    rows, heads = ("batch",), ("batch", None, "heads", None)
    matrices = ("batch", "heads", None, None)
    o, S = on_own_part(
        part,
        *(q, k, v, log_decay, bonus, segment_ids, previous_segment),
        None if state is None else state.S,
        axes=(
            *(heads, heads, heads, heads[: log_decay.ndim]),
            *(("heads", None), ("batch", None), rows, matrices),
        ),
        out_axes=(heads, matrices),
    )
    return o, LinearAttentionState(S)


def mlstm_front(c: Any, u: Any, weights: Sequence[Any], *, backend: Backend = None) -> Front:
    """`pallas_kernels.mlstm_front` with its weights in that order, batch and time spread over the
    mesh in context; channels are not.

    The weights go to the devices, and their gradients come back, with blocks or channels as their
    last axis: TPUs fill up an array's last axis to 128, and [3*I G] has 8 gates there.
    """

    def part(c, u, *weights, sequence_axis):
        del sequence_axis
        weights = (jnp.moveaxis(x, -1, 0) for x in weights)
        return tuple(mlstm_front_on_one_device(c, u, *weights, backend=backend))

    tokens = ("batch", "time", None)
    weights = [jnp.moveaxis(x, 0, -1) for x in weights]
    front = on_own_part(
        part, c, u, *weights,
        axes=(tokens, tokens, *((None,) * x.ndim for x in weights)), out_axes=(tokens,) * 4,
    )  # fmt: skip
    return Front(*front)


def mlstm_back(
    h: Any,
    scale: Any,
    gate: Any,
    c: Any = None,
    skip: Any = None,
    *,
    eps: float,
    activation: str,
    center: bool,
    backend: Backend = None,
) -> Any:
    """`pallas_kernels.mlstm_back`, its batch, time and heads spread over the mesh in context."""

    def part(h, scale, gate, c, skip, *, sequence_axis):
        del sequence_axis
        y = mlstm_back_on_one_device(
            h, scale, gate, c, skip,
            eps=eps, activation=activation, center=center, backend=backend,
        )  # fmt: skip
        return (y,)

    tokens, row = ("batch", "time", "inner"), ("inner",)
    (y,) = on_own_part(
        part, h, scale, gate, c, skip,
        axes=(("batch", "time", "heads", None), row, tokens, tokens, row), out_axes=(tokens,),
    )  # fmt: skip
    return y


def row_norm(x: Any, scale: Any, eps: float, *, center: bool) -> Any:
    """`pallas_kernels.row_norm` of `[B T D]`, batch and time spread over the mesh in context."""

    def part(x, scale, *, sequence_axis):
        del sequence_axis
        rows = x.reshape(-1, x.shape[-1])
        return (row_norm_on_one_device(rows, scale, eps, center=center).reshape(x.shape),)

    tokens = ("batch", "time", None)
    (y,) = on_own_part(part, x, scale, axes=(tokens, (None,)), out_axes=(tokens,))
    return y


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
