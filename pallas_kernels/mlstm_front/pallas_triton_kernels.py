"""The Triton kernels of `mlstm_front`: what each computes and its grid.

With y = conv(u), s = sigmoid(y) and c = y s, transposes written as Q', and the gates' kernel cut
into the parts G of q, k and v, per token:

  forward     c, q = Q c, k = K c, v = V u, gates = bias + G_q' q + G_k' k + G_v' v
  inner       g = (dc + Q' dq + K' dk + (Q' G_q + K' G_k) dgates) s (1 + y (1 - s)), y's gradient;
              sums over tokens: c dq, c dk, u dv, c dgates, u dgates, g u_(met at each tap), g
  outer       du = sum_taps conv_kernel_tap g_(of who meets u there) + V' dv + V' G_v dgates

Channels go through in groups of 64, whose blocks of i x i channels are one matrix of 64 x 64 that
is zero off its diagonal blocks: tensor cores multiply it in less time than the group's bytes take.
Neighbours are read by their places, so that documents, padding and a window need no code of their
own; all but one of a token's readings come out of the cache.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.mlstm.pallas_triton_tiles import call, dot
from pallas_kernels.mlstm_front.call import Front, Inner
from pallas_kernels.mlstm_front.pallas_triton_tiles import (
    Group,
    Operands,
    Settings,
    Tile,
    groups_of,
    of_row,
    whole,
    with_blocks,
)


def forward(
    settings: Settings,
    operands: Operands,
    matrices: Float[Array, "3 n g g"],
    gate_kernel: Float[Array, "3 n g P"],
    gate_bias: Float[Array, " P"],
) -> Front:
    """c, q, k, v and the P gates; n groups of g channels."""
    u = operands.u
    batch, time, channels = u.shape
    product = functools.partial(dot, tensor_cores=not settings.interpret)

    def mlstm_front(*refs: Any) -> None:
        (*inputs, matrices, gate_kernel, gate_bias), outs = refs[:-5], refs[-5:]
        operands = Operands(*inputs)
        tile = Tile(settings, pl.program_id(0), operands.sources)

        def step(n: Int[Array, ""], gates: Float[Array, "t P"]) -> Float[Array, "t P"]:
            group = Group(settings, n, channels)
            inputs, y = tile.convolve(operands, group)
            c = jnp.where(tile.real[:, None], y / (1 + jnp.exp(-y)), 0).astype(u.dtype)
            tile.write(outs[0], c, group)
            for part, x in enumerate((c, c, inputs[-1])):
                mapped = product(x, matrices[part, n]).astype(u.dtype)
                tile.write(outs[1 + part], mapped, group)
                gates = gates + product(mapped, gate_kernel[part, n])
            return gates

        bias = jnp.broadcast_to(gate_bias[:][None, :], (tile.rows.shape[0], gate_bias.shape[0]))
        tile.write_whole(outs[4], lax.fori_loop(0, groups_of(settings, channels), step, bias))

    ins = [
        *with_blocks(operands, 1),
        *((x, whole(x)) for x in (matrices, gate_kernel, gate_bias)),
    ]
    gates = jax.ShapeDtypeStruct((batch, time, gate_bias.shape[0]), jnp.float32)
    outs = [(x.shape, x.dtype, of_row(x, 1)) for x in (u, u, u, u, gates)]
    grid = (pl.cdiv(time, settings.blocks.tokens), batch)
    return Front(*call(mlstm_front, settings, grid, ins, outs))


def inner(
    settings: Settings,
    operands: Operands,
    matrices: Float[Array, "2 n g g"],
    gate_maps: Float[Array, "n P g"],
    d_front: Front,
) -> tuple[
    Inner,
    Float[Array, "B S 3 n*g i"],
    Float[Array, "B S 2 n*g P"],
    Float[Array, "B S W+1 n*g"],
]:
    """g, and the sums over the tokens of each of S stretches: diagonal blocks of c dq, c dk and
    u dv; c dgates and u dgates; gradients of the convolution's taps and bias. `matrices` are those
    of q and k transposed, `gate_maps` that of c to the gates.
    """
    u = operands.u
    batch, time, channels = u.shape
    tokens, size = settings.blocks.tokens, settings.blocks.channels
    groups, gates = groups_of(settings, channels), d_front.gates.shape[-1]
    width = operands.conv_kernel.shape[0]
    steps = pl.cdiv(pl.cdiv(time, tokens), settings.stretches)
    product = functools.partial(dot, tensor_cores=not settings.interpret)

    def mlstm_front_inner(*refs: Any) -> None:
        inputs, (matrices, gate_maps, *d_refs) = refs[:5], refs[5:-4]
        g_out, of_maps, of_gates, of_taps = refs[-4:]
        operands, d_refs = Operands(*inputs), Front(*d_refs)
        group = Group(settings, pl.program_id(0), channels)
        first, from_gates = pl.program_id(1) * steps, gate_maps[...]
        from_q, from_k = matrices[0], matrices[1]

        def step(i: Int[Array, ""], sums: Any) -> Any:
            maps, gate_sums, taps = sums
            tile = Tile(settings, first + i, operands.sources)
            inputs, y = tile.convolve(operands, group)
            sigmoid = 1 / (1 + jnp.exp(-y))
            real = tile.real[:, None]
            c = jnp.where(real, y * sigmoid, 0).astype(u.dtype)
            dq, dk, dv = (tile.read(ref, group) for ref in (d_refs.q, d_refs.k, d_refs.v))
            d_gates = tile.read_whole(d_refs.gates)
            dc = tile.read(d_refs.c, group).astype(jnp.float32) + product(d_gates, from_gates)
            dc = dc + product(dq, from_q) + product(dk, from_k)
            g = jnp.where(real, dc * sigmoid * (1 + y * (1 - sigmoid)), 0)
            tile.write(g_out, g, group)
            pairs = ((c, dq), (c, dk), (inputs[-1], dv))
            maps = [total + product(x, dx, (0, 0)) for total, (x, dx) in zip(maps, pairs, strict=True)]
            gate_sums = [
                total + product(x, d_gates, (0, 0))
                for total, x in zip(gate_sums, (c, inputs[-1]), strict=True)
            ]
            moved = [g * x.astype(jnp.float32) for x in inputs] + [g]
            taps = [total + jnp.sum(x, axis=0) for total, x in zip(taps, moved, strict=True)]
            return maps, gate_sums, taps

        empty = (
            [jnp.zeros((size, size), jnp.float32)] * 3,
            [jnp.zeros((size, gates), jnp.float32)] * 2,
            [jnp.zeros((size,), jnp.float32)] * (width + 1),
        )
        maps, gate_sums, taps = lax.fori_loop(0, steps, step, empty)
        for part, total in enumerate(maps):
            of_maps[part] = _diagonal_blocks(total, settings.size)
        for part, total in enumerate(gate_sums):
            of_gates[part] = total
        for part, total in enumerate(taps):
            of_taps[part] = total

    def of_group(x: Any, axis: int) -> pl.BlockSpec:
        shape = tuple(None if at == axis else length for at, length in enumerate(x.shape))
        return pl.BlockSpec(shape, lambda n, *_: tuple(n if at == axis else 0 for at in range(x.ndim)))

    def sums(*before: int, after: tuple[int, ...] = ()) -> Any:
        shape = (batch, settings.stretches, *before, groups * size, *after)
        block = pl.BlockSpec(
            (None, None, *before, size, *after),
            lambda n, s, b: (b, s, *(0 for _ in before), n, *(0 for _ in after)),
        )
        return shape, jnp.float32, block

    ins = [
        *with_blocks(operands, 2),
        (matrices, of_group(matrices, 1)),
        (gate_maps, of_group(gate_maps, 0)),
        *((x, of_row(x, 2)) for x in d_front),
    ]
    outs = [
        (u.shape, u.dtype, of_row(u, 2)),
        sums(3, after=(settings.size,)),
        sums(2, after=(gates,)),
        sums(width + 1),
    ]
    return call(mlstm_front_inner, settings, (groups, settings.stretches, batch), ins, outs)


def _diagonal_blocks(x: Float[Array, "g g"], size: int) -> Float[Array, "g i"]:
    """Each row's own block of i columns."""
    length = x.shape[0]
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) // size for axis in (0, 1))
    blocks = jnp.where(row == column, x, 0).reshape(length, length // size, size)
    return jnp.sum(blocks, axis=1)


def outer(
    settings: Settings,
    targets: Int[Array, "B W T"],
    conv_kernel: Float[Array, "W I"],
    matrices: Float[Array, "n g g"],
    gate_maps: Float[Array, "n P g"],
    g: Inner,
    dv: Inner,
    d_gates: Float[Array, "B T P"],
) -> Inner:
    """du. `matrices` are those of v transposed, `gate_maps` that of u to the gates through v."""
    batch, time, channels = g.shape
    width = conv_kernel.shape[0]
    product = functools.partial(dot, tensor_cores=not settings.interpret)

    def mlstm_front_outer(targets, conv_kernel, matrices, gate_maps, g, dv, d_gates, du_out):
        tile = Tile(settings, pl.program_id(0), targets)
        of_gates = tile.read_whole(d_gates)

        def step(n: Int[Array, ""], carry: Array) -> Array:
            group = Group(settings, n, channels)
            du = product(tile.read(dv, group), matrices[n]) + product(of_gates, gate_maps[n])
            for tap in range(width):
                last = tap == width - 1
                x = tile.read(g, group) if last else tile.read_met(g, tap, group)
                du = du + x.astype(jnp.float32) * group.row(conv_kernel, tap)
            tile.write(du_out, du, group)
            return carry

        lax.fori_loop(0, groups_of(settings, channels), step, jnp.int32(0))

    ins = [
        (targets, of_row(targets, 1)),
        *((x, whole(x)) for x in (conv_kernel, matrices, gate_maps)),
        *((x, of_row(x, 1)) for x in (g, dv, d_gates)),
    ]
    grid = (pl.cdiv(time, settings.blocks.tokens), batch)
    (du,) = call(mlstm_front_outer, settings, grid, ins, [(g.shape, g.dtype, of_row(g, 1))])
    return du
