"""The Triton kernels of `mlstm_front`: what each computes and its grid.

With y = conv(u), s = sigmoid(y) and c = y s, transposes written as Q', and the gates' kernel cut
into the parts G of q, k and v, per token:

  forward     c, q = Q c, k = K c, v = V u, gates = bias + G_q' q + G_k' k + G_v' v
  inner       g = (dc + Q' dq + K' dk + (Q' G_q + K' G_k) dgates) s (1 + y (1 - s)), y's gradient;
              sums over tokens of c dq, c dk, c dgates
  outer       du = sum_taps conv_kernel_tap g_(of who meets u there) + V' dv + V' G_v dgates;
              sums over tokens of u dv, u dgates, u g_(of who meets u at each tap), g

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
    dc: Inner,
    dq: Inner,
    dk: Inner,
    d_gates: Float[Array, "B T P"],
) -> tuple[Inner, Float[Array, "B S 2 n*g i"], Float[Array, "B S n*g P"]]:
    """g, and the sums over the tokens of each of S stretches: diagonal blocks of c dq and c dk, and
    c dgates. `matrices` are those of q and k transposed, `gate_maps` that of c to the gates.
    """
    u = operands.u
    channels, gates = u.shape[-1], d_gates.shape[-1]
    size = settings.blocks.channels
    walk = Walk(settings, u)
    product = functools.partial(dot, tensor_cores=not settings.interpret)

    def mlstm_front_inner(*refs: Any) -> None:
        inputs, (matrices, gate_maps, dc, dq, dk, d_gates) = refs[:5], refs[5:-3]
        g_out, of_maps, of_gates = refs[-3:]
        operands = Operands(*inputs)
        group, first = walk.start(channels)

        def step(i: Int[Array, ""], sums: Any) -> Any:
            of_q, of_k, of_gates = sums
            tile = Tile(settings, first + i, operands.sources)
            y = tile.convolve(operands, group)[1]
            sigmoid, real = 1 / (1 + jnp.exp(-y)), tile.real[:, None]
            c = jnp.where(real, y * sigmoid, 0).astype(u.dtype)
            d_q, d_k, d_of_gates = (
                tile.read(dq, group),
                tile.read(dk, group),
                tile.read_whole(d_gates),
            )
            total = tile.read(dc, group).astype(jnp.float32) + product(d_of_gates, gate_maps[...])
            total = total + product(d_q, matrices[0]) + product(d_k, matrices[1])
            tile.write(g_out, jnp.where(real, total * sigmoid * (1 + y * (1 - sigmoid)), 0), group)
            return (
                of_q + product(c, d_q, (0, 0)),
                of_k + product(c, d_k, (0, 0)),
                of_gates + product(c, d_of_gates, (0, 0)),
            )

        shapes = ((size, size), (size, size), (size, gates))
        empty = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        *maps, gate_sums = lax.fori_loop(0, walk.steps, step, empty)
        for part, total in enumerate(maps):
            of_maps[part] = _diagonal_blocks(total, settings.size)
        of_gates[...] = gate_sums

    ins = [
        *with_blocks(operands, 2),
        (matrices, walk.of_group(matrices, 1)),
        (gate_maps, walk.of_group(gate_maps, 0)),
        *((x, of_row(x, 2)) for x in (dc, dq, dk, d_gates)),
    ]
    outs = [
        (u.shape, u.dtype, of_row(u, 2)),
        walk.sums((2,), (settings.size,)),
        walk.sums((), (gates,)),
    ]
    return call(mlstm_front_inner, settings, walk.grid, ins, outs)


def outer(
    settings: Settings,
    targets: Int[Array, "B W T"],
    u: Inner,
    conv_kernel: Float[Array, "W I"],
    matrices: Float[Array, "n g g"],
    gate_maps: Float[Array, "n P g"],
    g: Inner,
    dv: Inner,
    d_gates: Float[Array, "B T P"],
) -> tuple[
    Inner, Float[Array, "B S n*g i"], Float[Array, "B S n*g P"], Float[Array, "B S W+1 n*g"]
]:
    """du, and the sums over the tokens of each of S stretches: diagonal blocks of u dv, u dgates,
    and the gradients of the convolution's taps, as far as they meet u, and of its bias. `matrices`
    are those of v transposed, `gate_maps` that of u to the gates through v.
    """
    channels, gates = u.shape[-1], d_gates.shape[-1]
    size, width = settings.blocks.channels, conv_kernel.shape[0]
    walk = Walk(settings, u)
    product = functools.partial(dot, tensor_cores=not settings.interpret)

    def mlstm_front_outer(*refs: Any) -> None:
        targets, u, conv_kernel, matrices, gate_maps, g, dv, d_gates = refs[:-4]
        du_out, of_map, of_gates, of_taps = refs[-4:]
        group, first = walk.start(channels)

        def step(i: Int[Array, ""], sums: Any) -> Any:
            of_v, of_gates, of_taps = sums
            tile = Tile(settings, first + i, targets)
            x, d_v, d_of_gates = tile.read(u, group), tile.read(dv, group), tile.read_whole(d_gates)
            du = product(d_v, matrices[...]) + product(d_of_gates, gate_maps[...])
            high, taps = x.astype(jnp.float32), []
            for tap in range(width):
                own = tap == width - 1
                met = tile.read(g, group) if own else tile.read_met(g, tap, group)
                met = met.astype(jnp.float32)
                du = du + met * group.row(conv_kernel, tap)
                taps.append(jnp.sum(met * high, axis=0))
            taps.append(jnp.sum(met, axis=0))
            tile.write(du_out, du, group)
            return (
                of_v + product(x, d_v, (0, 0)),
                of_gates + product(x, d_of_gates, (0, 0)),
                tuple(total + tap for total, tap in zip(of_taps, taps, strict=True)),
            )

        empty = (
            jnp.zeros((size, size), jnp.float32),
            jnp.zeros((size, gates), jnp.float32),
            (jnp.zeros((size,), jnp.float32),) * (width + 1),
        )
        of_v, gate_sums, taps = lax.fori_loop(0, walk.steps, step, empty)
        of_map[...], of_gates[...] = _diagonal_blocks(of_v, settings.size), gate_sums
        for part, total in enumerate(taps):
            of_taps[part] = total

    ins = [
        (targets, of_row(targets, 2)),
        (u, of_row(u, 2)),
        (conv_kernel, whole(conv_kernel)),
        (matrices, walk.of_group(matrices, 0)),
        (gate_maps, walk.of_group(gate_maps, 0)),
        *((x, of_row(x, 2)) for x in (g, dv, d_gates)),
    ]
    outs = [
        (u.shape, u.dtype, of_row(u, 2)),
        walk.sums((), (settings.size,)),
        walk.sums((), (gates,)),
        walk.sums((width + 1,), ()),
    ]
    return call(mlstm_front_outer, settings, walk.grid, ins, outs)


class Walk:
    """How a backward kernel goes over the tokens: each program through one stretch of a row with
    one group of channels, in `steps` tiles. The grid is (groups, stretches, rows).
    """

    def __init__(self, settings: Settings, u: Inner) -> None:
        batch, time, channels = u.shape
        self.settings, self.groups = settings, groups_of(settings, channels)
        self.steps = pl.cdiv(pl.cdiv(time, settings.blocks.tokens), settings.stretches)
        self.grid = (self.groups, settings.stretches, batch)

    def start(self, channels: int) -> tuple[Group, Int[Array, ""]]:
        """A program's channels and its first tile."""
        group = Group(self.settings, pl.program_id(0), channels)
        return group, pl.program_id(1) * self.steps

    def of_group(self, x: Array, axis: int) -> pl.BlockSpec:
        """The entries of a program's group in an array that has all groups on this axis."""
        shape = tuple(None if at == axis else size for at, size in enumerate(x.shape))
        return pl.BlockSpec(
            shape, lambda n, *_: tuple(n if at == axis else 0 for at in range(x.ndim))
        )

    def sums(self, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """An output with numbers for each channel, of each stretch: shape, type and block."""
        size, (groups, stretches, batch) = self.settings.blocks.channels, self.grid
        shape = (batch, stretches, *before, groups * size, *after)
        block = pl.BlockSpec(
            (None, None, *before, size, *after),
            lambda n, s, b: (b, s, *(0 for _ in before), n, *(0 for _ in after)),
        )
        return shape, jnp.float32, block


def _diagonal_blocks(x: Float[Array, "g g"], size: int) -> Float[Array, "g i"]:
    """Each row's own block of i columns."""
    length = x.shape[0]
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) // size for axis in (0, 1))
    blocks = jnp.where(row == column, x, 0).reshape(length, length // size, size)
    return jnp.sum(blocks, axis=1)
