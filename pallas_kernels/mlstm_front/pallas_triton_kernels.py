"""The Triton kernels of `mlstm_front` (rows.py): their grids.

Channels go through in groups, of 64 on Hopper. Operands of products are tiles as they were read, in
shared memory. What a kernel computes first and multiplies then is computed anew for each product,
in its own layout: with the convolution in here, three times, the forward pass took 1.56 ms of
65,536 tokens and 1,536 channels on an H200, of which the bytes are 0.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.mlstm.pallas_triton_tiles import call, dot
from pallas_kernels.mlstm_front.rows import Rows
from pallas_kernels.triton_rows import Tile


class Blocks(NamedTuple):
    """Sizes, each a power of two: tokens and channels of a tile; warps of a program. And tiles that
    are there at once, one of which is multiplied while the others are read.
    """

    tokens: int
    channels: int
    warps: int
    stages: int


class Settings(NamedTuple):
    """What a kernel is specialised on.

    interpret: as `pl.pallas_call` takes it.
    size: i, channels of a block.
    programs: of the backward pass, about.
    """

    interpret: bool
    size: int
    blocks: Blocks
    programs: int

    def groups(self, channels: int) -> int:
        """How many groups the channels make."""
        return pl.cdiv(channels, self.blocks.channels)

    def tile(self, shape: tuple[int, int], at: Any, group: Any) -> Tile:
        """Some tokens of a group."""
        return Tile(shape, (at, self.blocks.tokens), (group, self.blocks.channels))


def forward(
    settings: Settings,
    c: Rows,
    u: Rows,
    matrices: Float[Array, "3 n g g"],
    gate_maps: Float[Array, "2 n g P"],
    gate_bias: Float[Array, " P"],
) -> tuple[Rows, Rows, Rows, Float[Array, "R P"]]:
    """q, k, v and the P gates; n groups of g channels. A program has some tokens."""
    rows, channels = u.shape

    def mlstm_front(c, u, matrices, gate_maps, gate_bias, q, k, v, gates) -> None:
        at = pl.program_id(0)

        def step(n: Array, total: Float[Array, "t P"]) -> Float[Array, "t P"]:
            tile = settings.tile(u.shape, at, n)
            of_c, of_u = tile.read(c), tile.read(u)
            for part, (x, out) in enumerate(((of_c, q), (of_c, k), (of_u, v))):
                tile.write(out, _product(settings, x, matrices[part, n]))
            total = total + _product(settings, of_c, gate_maps[0, n])
            return total + _product(settings, of_u, gate_maps[1, n])

        tile = settings.tile(u.shape, at, 0)
        bias = jnp.broadcast_to(gate_bias[:][None, :], (tile.rows.shape[0], gate_bias.shape[0]))
        total = lax.fori_loop(0, settings.groups(channels), step, bias)
        tile.write_whole(gates, total)

    ins = [(x, _whole(x)) for x in (c, u, matrices, gate_maps, gate_bias)]
    gates = jax.ShapeDtypeStruct((rows, gate_bias.shape[0]), jnp.float32)
    outs = [(x.shape, x.dtype, _whole(x)) for x in (u, u, u, gates)]
    grid = (pl.cdiv(rows, settings.blocks.tokens),)
    return call(mlstm_front, settings, grid, ins, outs, stages=settings.blocks.stages)


def backward(
    settings: Settings,
    c: Rows,
    u: Rows,
    matrices: Float[Array, "3 n g g"],
    gate_maps: Float[Array, "2 n P g"],
    dq: Rows,
    dk: Rows,
    dv: Rows,
    d_gates: Float[Array, "R P"],
) -> tuple[Rows, Rows, Float[Array, "3 n*g i"], Float[Array, "2 n*g P"]]:
    """dc, du and the sums over the tokens: diagonal blocks of c dq, c dk and u dv; c dgates and u
    dgates. The matrices are those of the maps transposed. A program has a group of channels and a
    stretch of tokens.
    """
    rows, channels = u.shape
    size, gates = settings.blocks.channels, d_gates.shape[-1]
    tiles = pl.cdiv(rows, settings.blocks.tokens)
    stretches = min(tiles, pl.cdiv(settings.programs, settings.groups(channels)))
    steps = pl.cdiv(tiles, stretches)  # of a program; fewer at the end, where no tile is left

    def mlstm_front_back(c, u, matrices, gate_maps, dq, dk, dv, d_gates, dc, du, maps, to_gates):
        n, stretch = pl.program_id(0), pl.program_id(1)

        def step(i: Array, sums: Any) -> Any:
            tile = settings.tile(u.shape, stretch * steps + i, n)
            of_c, of_u, of_gates = tile.read(c), tile.read(u), tile.read_whole(d_gates)
            of_q, of_k, of_v = (tile.read(x) for x in (dq, dk, dv))
            total = _product(settings, of_q, matrices[0]) + _product(settings, of_k, matrices[1])
            tile.write(dc, total + _product(settings, of_gates, gate_maps[0]))
            total = _product(settings, of_v, matrices[2])
            tile.write(du, total + _product(settings, of_gates, gate_maps[1]))
            pairs = ((of_c, of_q), (of_c, of_k), (of_u, of_v), (of_c, of_gates), (of_u, of_gates))
            return tuple(
                total + _product(settings, x, y, (0, 0))
                for total, (x, y) in zip(sums, pairs, strict=True)
            )

        widths = (size, size, size, gates, gates)
        empty = tuple(jnp.zeros((size, width), jnp.float32) for width in widths)
        sums = lax.fori_loop(0, jnp.clip(tiles - stretch * steps, 0, steps), step, empty)
        for part in range(3):
            maps[part] = _diagonal_blocks(sums[part], settings.size)
        for part in range(2):
            to_gates[part] = sums[3 + part]

    def of_group(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((x.shape[0], None, *x.shape[2:]), lambda n, s: (0, n, 0, 0))

    def of_sums(parts: int, width: int) -> tuple[Any, Any, pl.BlockSpec]:
        shape = (stretches, parts, settings.groups(channels) * size, width)
        block = pl.BlockSpec((None, parts, size, width), lambda n, s: (s, 0, n, 0))
        return shape, jnp.float32, block

    ins = [
        *((x, _whole(x)) for x in (c, u)),
        *((x, of_group(x)) for x in (matrices, gate_maps)),
        *((x, _whole(x)) for x in (dq, dk, dv, d_gates)),
    ]
    outs = [
        *((x.shape, x.dtype, _whole(x)) for x in (u, u)),
        of_sums(3, settings.size),
        of_sums(2, gates),
    ]
    grid = (settings.groups(channels), stretches)
    dc, du, *sums = call(mlstm_front_back, settings, grid, ins, outs, stages=settings.blocks.stages)
    return dc, du, *(jnp.sum(x, axis=0) for x in sums)


def _product(settings: Settings, x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    return dot(x, y, contract, tensor_cores=not settings.interpret)


def _whole(x: Any) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda *at: (0,) * len(x.shape))


def _diagonal_blocks(x: Float[Array, "g g"], size: int) -> Float[Array, "g i"]:
    """Each row's own block of i columns."""
    length = x.shape[0]
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) // size for axis in (0, 1))
    blocks = jnp.where(row == column, x, 0).reshape(length, length // size, size)
    return jnp.sum(blocks, axis=1)
