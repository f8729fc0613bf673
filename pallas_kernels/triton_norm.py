"""The norm of heads and what follows it (norm_of_heads.py) in Triton: the kernels of `mlstm_back`
and `row_norm`.

A program has a head and some tokens, all in registers from the first sum to the result. The
channels of a head are pieces whose lengths are powers of two, as Triton wants them: 384 are three
of 128.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.mlstm.pallas_triton_tiles import call
from pallas_kernels.norm_of_heads import Given, Norm, write_backward, write_forward
from pallas_kernels.triton_rows import Tile
from pallas_kernels.typing import Rows

MOST_PIECES = 16  # of a head
ENTRIES = 4096  # at most so many of a tile, if it has more than one token
PER_WARP = 256  # entries of a piece: each thread reads 8 neighbours
PROGRAMS = 1056  # about so many in the backward pass, where there are enough tokens


class Blocks(NamedTuple):
    """Sizes, each a power of two: tokens of a tile, channels of a piece; warps of a program."""

    tokens: int
    piece: int
    warps: int


class Settings(NamedTuple):
    """What a kernel is specialised on.

    name: of the forward kernel.
    interpret: as `pl.pallas_call` takes it.
    programs: of the backward pass, about.
    """

    name: str
    interpret: bool
    norm: Norm
    blocks: Blocks
    programs: int

    def pieces(self, shape: tuple[int, int], at: Any, head: Any) -> list[Tile]:
        """Some tokens of a head."""
        tokens, length, _ = self.blocks
        number = self.norm.head_dim // length
        return [Tile(shape, (at, tokens), (head * number + i, length)) for i in range(number)]


def settings_for(name: str, interpret: bool, what: str, norm: Norm) -> Settings:
    """Of heads of V channels; `what` names a head.

    Raises NotImplementedError for channels that are many pieces.
    """
    head_dim = norm.head_dim
    piece = min(head_dim & -head_dim, ENTRIES)
    if head_dim > MOST_PIECES * piece:
        raise NotImplementedError(
            f"{what} must be at most {MOST_PIECES} times a power of two; it has {head_dim} channels"
        )
    tokens = 1 << (max(1, ENTRIES // head_dim).bit_length() - 1)
    blocks = Blocks(tokens, piece, warps=max(1, min(8, tokens * piece // PER_WARP)))
    return Settings(name, interpret, norm, blocks, PROGRAMS)


def forward(settings: Settings, given: Given) -> Rows:
    """y."""
    shape, norm = given.h.shape, settings.norm

    def kernel(*refs: Any) -> None:
        *ins, y = refs
        pieces = settings.pieces(shape, pl.program_id(0), pl.program_id(1))
        write_forward(norm, pieces, given.replaced(ins), y)

    kernel.__name__ = settings.name
    ins = [(x, _whole(x)) for x in given if x is not None]
    grid = (pl.cdiv(shape[0], settings.blocks.tokens), shape[1] // norm.head_dim)
    return call(kernel, settings, grid, ins, [(shape, given.h.dtype, _whole(given.h))])[0]


def backward(settings: Settings, dy: Rows, given: Given) -> tuple[Array, ...]:
    """dh, dgate and dc where there are gate and c, and the float32 gradients of scale (and skip):
    [1 I] or [2 I]. A program has a head and a stretch of tokens, and gives the sums over these.
    """
    (tokens, length, _), head_dim = settings.blocks, settings.norm.head_dim
    h, shape = given.h, given.h.shape
    heads, tiles = shape[1] // head_dim, pl.cdiv(shape[0], tokens)
    stretches = min(tiles, pl.cdiv(settings.programs, heads))
    steps = pl.cdiv(tiles, stretches)  # of a program; fewer at the end, where no tile is left
    number = 1 if given.c is None else 2  # rows of sums
    arrays = [x for x in given if x is not None]

    def kernel(dy: Any, *refs: Any) -> None:
        ins, (*gradients, sums) = refs[: len(arrays)], refs[len(arrays) :]
        head, stretch = pl.program_id(0), pl.program_id(1)

        def step(i: Array, totals: Any) -> Any:
            pieces = settings.pieces(shape, stretch * steps + i, head)
            added = write_backward(settings.norm, pieces, dy, given.replaced(ins), gradients)
            return jax.tree.map(jnp.add, totals, added)

        pieces = head_dim // length
        empty = [[jnp.zeros((tokens, length), jnp.float32)] * number for _ in range(pieces)]
        count = jnp.clip(tiles - stretch * steps, 0, steps)
        for i, totals in enumerate(lax.fori_loop(0, count, step, empty)):
            for row, total in enumerate(totals):
                sums[row, pl.ds(i * length, length)] = jnp.sum(total, axis=0)

    kernel.__name__ = f"{settings.name}_back"
    ins = [(x, _whole(x)) for x in (dy, *arrays)]
    of_sums = pl.BlockSpec((None, number, head_dim), lambda head, s: (s, 0, head))
    outs = [
        *[(shape, h.dtype, _whole(h)) for x in (h, given.gate, given.c) if x is not None],
        ((stretches, number, shape[1]), jnp.float32, of_sums),
    ]
    *gradients, sums = call(kernel, settings, (heads, stretches), ins, outs)
    return *gradients, jnp.sum(sums, axis=0)


def _whole(x: Any) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda *at: (0,) * len(x.shape))
