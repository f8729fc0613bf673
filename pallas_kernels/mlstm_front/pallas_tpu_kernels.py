"""The TPU kernels of `mlstm_front` (rows.py): a program has all channels of some tokens in VMEM and
takes a group of 128 after the other, whose matrix is one of the matrix unit's.

Gates are [P R] in here, a token per lane: 8 or 16 of 128 lanes would be in use otherwise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.mlstm_front.rows import Rows
from pallas_kernels.tpu_sizes import LANES, VMEM_LIMIT
from pallas_kernels.tpu_tiles import cost, existing, products, split_tiles, tile_block, which_exist


class Settings(NamedTuple):
    """What a kernel is specialised on: i, channels of a block; tokens of a program; how to
    interpret.
    """

    size: int
    tokens: int
    interpret: Any


def forward(
    settings: Settings,
    c: Rows,
    u: Rows,
    matrices: Float[Array, "3 n g g"],
    to_gates: Float[Array, "2 n g P"],
    gate_bias: Float[Array, " P"],
) -> tuple[Rows, Rows, Rows, Float[Array, "R P"]]:
    """q, k, v and the P gates."""
    (rows, channels), (_, tokens, _) = u.shape, settings
    dot, to_gates = products(settings.interpret), jnp.swapaxes(to_gates, -1, -2)

    def mlstm_front(c, u, matrices, to_gates, bias, q, k, v, gates) -> None:
        def step(n: Array, total: Float[Array, "P t"]) -> Float[Array, "P t"]:
            at = _group(n)
            of_c, of_u = c[:, at], u[:, at]
            for part, (x, out) in enumerate(((of_c, q), (of_c, k), (of_u, v))):
                out[:, at] = dot(x, matrices[part, n]).astype(out.dtype)
            return total + (dot(to_gates[0, n], of_c, (1, 1)) + dot(to_gates[1, n], of_u, (1, 1)))

        start = jnp.broadcast_to(bias[...], gates.shape)
        gates[...] = lax.fori_loop(0, channels // LANES, step, start)

    tile = tile_block(tokens, channels)
    of_gates = pl.BlockSpec((gate_bias.shape[0], tokens), lambda i: (0, i))
    ins = (c, u, matrices, to_gates, gate_bias[:, None])
    outs = [
        *[jax.ShapeDtypeStruct(u.shape, u.dtype)] * 3,
        jax.ShapeDtypeStruct((gate_bias.shape[0], rows), jnp.float32),
    ]
    *mapped, gates = pl.pallas_call(
        mlstm_front,
        grid=(pl.cdiv(rows, tokens),),
        in_specs=[tile, tile, *(_whole(x) for x in ins[2:])],
        out_specs=[tile, tile, tile, of_gates],
        out_shape=outs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost(2 * _multiplications(c, to_gates), ins, outs),
        interpret=settings.interpret,
        name="mlstm_front",
    )(*ins)
    return *mapped, gates.T


def backward(
    settings: Settings,
    c: Rows,
    u: Rows,
    matrices: Float[Array, "3 n g g"],
    to_gates: Float[Array, "2 n P g"],
    dq: Rows,
    dk: Rows,
    dv: Rows,
    d_gates: Float[Array, "R P"],
) -> tuple[Rows, Rows, Float[Array, "3 n*g i"], Float[Array, "2 n*g P"]]:
    """dc, du and the sums over the tokens: diagonal blocks of c dq, c dk and u dv; c dgates and u
    dgates. The matrices are those of the maps transposed.
    """
    (rows, channels), (size, tokens, _) = u.shape, settings
    parts, steps = split_tiles(pl.cdiv(rows, tokens))
    gates, groups = d_gates.shape[1], channels // LANES
    dot = products(settings.interpret)

    def mlstm_front_back(c, u, matrices, to_gates, dq, dk, dv, d_gates, dc, du, of_maps, of_gates):
        part, at_tile = pl.program_id(0), pl.program_id(1)
        some = which_exist(rows, tokens, (part * steps + at_tile) * tokens, tokens)

        @pl.when(at_tile == 0)
        def _() -> None:
            of_gates[...] = jnp.zeros_like(of_gates)

            def clear(n: Array, _: None) -> None:
                for row in range(3):
                    of_maps[row, n] = jnp.zeros((LANES, LANES), jnp.float32)

            lax.fori_loop(0, groups, clear, None)

        by_token = existing(d_gates[...].astype(jnp.float32).T, some)
        by_gate = by_token.T.astype(d_gates.dtype)
        by_token = by_token.astype(d_gates.dtype)

        def step(n: Array, _: None) -> None:
            at = _group(n)
            of_c, of_u, of_q, of_k, of_v = (existing(x[:, at], some) for x in (c, u, dq, dk, dv))
            total = dot(of_q, matrices[0, n]) + dot(of_k, matrices[1, n])
            dc[:, at] = (total + dot(by_token, to_gates[0, n])).astype(dc.dtype)
            total = dot(of_v, matrices[2, n]) + dot(by_token, to_gates[1, n])
            du[:, at] = total.astype(du.dtype)
            for row, (x, y) in enumerate(((of_c, of_q), (of_c, of_k), (of_u, of_v))):
                of_maps[row, n] += dot(x, y, (0, 0))
            for row, x in enumerate((of_c, of_u)):
                of_gates[row, :, at] += dot(by_gate, x)

        lax.fori_loop(0, groups, step, None)

    tile = tile_block(tokens, channels, steps)
    sums = [(3, groups, LANES, LANES), (2, gates, channels)]
    ins = (c, u, matrices, to_gates, dq, dk, dv, d_gates.T)
    outs = [
        *[jax.ShapeDtypeStruct(u.shape, u.dtype)] * 2,
        *(jax.ShapeDtypeStruct((parts, *shape), jnp.float32) for shape in sums),
    ]
    dc, du, of_maps, of_gates = pl.pallas_call(
        mlstm_front_back,
        grid=(parts, steps),
        in_specs=[
            *(tile, tile, _whole(matrices), _whole(to_gates), tile, tile, tile),
            pl.BlockSpec((gates, tokens), lambda part, step: (0, part * steps + step)),
        ],
        out_specs=[tile, tile, *(_of_part(shape) for shape in sums)],
        out_shape=outs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost(4 * _multiplications(c, to_gates), ins, outs),
        interpret=settings.interpret,
        name="mlstm_front_back",
    )(*ins)
    of_maps, of_gates = jnp.sum(of_maps, axis=0), jnp.sum(of_gates, axis=0)
    return dc, du, _diagonal_blocks(of_maps, size), jnp.swapaxes(of_gates, 1, 2)


def _multiplications(c: Rows, to_gates: Float[Array, "2 n P g"]) -> int:
    """Of the forward pass: each channel times three matrices and its part of a map to the gates."""
    return c.size * (3 * LANES + to_gates.shape[2])


def _group(n: Array) -> Any:
    """The channels of a group."""
    return pl.ds(pl.multiple_of(n * LANES, LANES), LANES)


def _whole(x: Any) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda *at: (0,) * len(x.shape))


def _of_part(shape: tuple[int, ...]) -> pl.BlockSpec:
    """The sums of a part of the tokens."""
    return pl.BlockSpec((None, *shape), lambda part, step: (part, *(0 for _ in shape)))


def _diagonal_blocks(x: Float[Array, "3 n g g"], size: int) -> Float[Array, "3 n*g i"]:
    """Each row's own block of i columns, by masks: TPUs are slow at choosing entries by index."""
    row, column = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    first = row // size * size
    columns = [jnp.sum(jnp.where(column == first + i, x, 0), axis=-1) for i in range(size)]
    return jnp.moveaxis(jnp.stack(columns).reshape(size, 3, -1), 0, -1)
