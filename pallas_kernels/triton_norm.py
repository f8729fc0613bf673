"""The norm of heads and what follows it, in Triton: the kernels of `mlstm_back` and, without gate
and skip, of `row_norm`, where a row is one head. With n the heads' norm and a(z) the gate:

  forward     y = (n * scale + skip * c) * a(z)
  backward    g = dy * a(z), the gradient of what is gated
              dz = dy * (n * scale + skip * c) * a'(z), dc = g * skip
              dh = rate * (dn - mean(dn) - n * mean(dn * n)) with dn = g * scale
              sums over tokens of g * n and g * c

A program has a head and some tokens, all in registers from the first sum to the result. The
channels of a head are pieces whose lengths are powers of two, as Triton wants them: 384 are three
of 128.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.mlstm.pallas_triton_tiles import call
from pallas_kernels.triton_rows import Tile

Rows = Float[Array, "R I"]  # all tokens of all rows of the batch
Parts = list[Float[Array, "t p"]]  # the pieces of a tile

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
    eps, center: as `mlstm_back` takes them.
    activation: what the gate goes through, None where there is no gate.
    head_dim: V.
    programs: of the backward pass, about.
    """

    name: str
    interpret: bool
    eps: float
    center: bool
    activation: str | None
    head_dim: int
    blocks: Blocks
    programs: int

    def pieces(self, shape: tuple[int, int], at: Any, head: Any) -> list[Tile]:
        """Some tokens of a head."""
        tokens, length, _ = self.blocks
        number = self.head_dim // length
        return [Tile(shape, (at, tokens), (head * number + i, length)) for i in range(number)]


def settings_for(
    name: str,
    interpret: bool,
    what: str,
    head_dim: int,
    eps: float,
    *,
    center: bool,
    activation: str | None = None,
) -> Settings:
    """Of heads of V channels; `what` names a head.

    Raises NotImplementedError for channels that are many pieces.
    """
    piece = min(head_dim & -head_dim, ENTRIES)
    if head_dim > MOST_PIECES * piece:
        raise NotImplementedError(
            f"{what} must be at most {MOST_PIECES} times a power of two; it has {head_dim} channels"
        )
    tokens = 1 << (max(1, ENTRIES // head_dim).bit_length() - 1)
    blocks = Blocks(tokens, piece, warps=max(1, min(8, tokens * piece // PER_WARP)))
    return Settings(name, interpret, eps, center, activation, head_dim, blocks, PROGRAMS)


def forward(
    settings: Settings,
    h: Rows,
    scale: Float[Array, " I"],
    gate: Rows | None = None,
    c: Rows | None = None,
    skip: Float[Array, " I"] | None = None,
) -> Rows:
    """y."""
    arrays, shape = (h, scale, gate, c, skip), h.shape

    def kernel(*refs: Any) -> None:
        (h, scale, gate, c, skip), (y,) = _named(arrays, refs)
        tiles = settings.pieces(shape, pl.program_id(0), pl.program_id(1))
        normed, _ = _normed(settings, tiles, h)
        for tile, n in zip(tiles, normed, strict=True):
            inner = n * tile.read_row(scale)
            if c is not None:
                inner = inner + tile.read_row(skip) * _read(tile, c)
            if gate is not None:
                inner = inner * _gate(settings, _read(tile, gate))[0]
            tile.write(y, inner)

    kernel.__name__ = settings.name
    ins = [(x, _whole(x)) for x in arrays if x is not None]
    grid = (pl.cdiv(shape[0], settings.blocks.tokens), shape[1] // settings.head_dim)
    return call(kernel, settings, grid, ins, [(shape, h.dtype, _whole(h))])[0]


def backward(
    settings: Settings,
    dy: Rows,
    h: Rows,
    scale: Float[Array, " I"],
    gate: Rows | None = None,
    c: Rows | None = None,
    skip: Float[Array, " I"] | None = None,
) -> tuple[Array, ...]:
    """dh, dgate and dc where there are gate and c, and the float32 gradients of scale (and skip):
    [1 I] or [2 I]. A program has a head and a stretch of tokens, and gives the sums over these.
    """
    arrays, shape, (tokens, length, _) = (h, scale, gate, c, skip), h.shape, settings.blocks
    heads, tiles = shape[1] // settings.head_dim, pl.cdiv(shape[0], tokens)
    stretches = min(tiles, pl.cdiv(settings.programs, heads))
    steps = pl.cdiv(tiles, stretches)  # of a program; fewer at the end, where no tile is left
    number = 1 if c is None else 2  # rows of sums

    def kernel(dy: Any, *refs: Any) -> None:
        (h, scale, gate, c, skip), (dh, *others, sums) = _named(arrays, refs)
        head, stretch = pl.program_id(0), pl.program_id(1)

        def step(i: Array, totals: Any) -> Any:
            pieces = settings.pieces(shape, stretch * steps + i, head)
            normed, rate = _normed(settings, pieces, h)
            along, added = [], []
            for tile, n in zip(pieces, normed, strict=True):
                of_y, of_scale = _read(tile, dy), tile.read_row(scale)
                a, slope = (1, 0) if gate is None else _gate(settings, _read(tile, gate))
                inner, g = n * of_scale, of_y * a
                summands = [g * n]
                if c is not None:
                    of_c, of_skip = _read(tile, c), tile.read_row(skip)
                    inner = inner + of_skip * of_c
                    tile.write(others[1], g * of_skip)
                    summands.append(g * of_c)
                if gate is not None:
                    tile.write(others[0], of_y * inner * slope)
                along.append(g * of_scale)
                added.append(summands)
            slope = _mean(settings, [dn * n for dn, n in zip(along, normed, strict=True)])
            level = _mean(settings, along) if settings.center else 0
            for tile, dn, n in zip(pieces, along, normed, strict=True):
                tile.write(dh, rate * (dn - level - n * slope))
            return jax.tree.map(jnp.add, totals, added)

        pieces = settings.head_dim // length
        empty = [[jnp.zeros((tokens, length), jnp.float32)] * number for _ in range(pieces)]
        count = jnp.clip(tiles - stretch * steps, 0, steps)
        for i, totals in enumerate(lax.fori_loop(0, count, step, empty)):
            for row, total in enumerate(totals):
                sums[row, pl.ds(i * length, length)] = jnp.sum(total, axis=0)

    kernel.__name__ = f"{settings.name}_back"
    ins = [(x, _whole(x)) for x in (dy, *arrays) if x is not None]
    of_sums = pl.BlockSpec((None, number, settings.head_dim), lambda head, s: (s, 0, head))
    outs = [
        *[(shape, h.dtype, _whole(h)) for x in (h, gate, c) if x is not None],
        ((stretches, number, shape[1]), jnp.float32, of_sums),
    ]
    *gradients, sums = call(kernel, settings, (heads, stretches), ins, outs)
    return *gradients, jnp.sum(sums, axis=0)


def _named(arrays: tuple[Array | None, ...], refs: tuple[Any, ...]) -> tuple[Any, Any]:
    """What a kernel was given in place of the arrays, None for those that are None; its results."""
    given = iter(refs)
    return [None if x is None else next(given) for x in arrays], tuple(given)


def _normed(settings: Settings, tiles: list[Tile], h: Any) -> tuple[Parts, Float[Array, "t 1"]]:
    """n, and what the distances from the mean were multiplied with."""
    parts = [_read(tile, h) for tile in tiles]
    if settings.center:
        mean = _mean(settings, parts)
        parts = [x - mean for x in parts]
    square = _mean(settings, [x * x for x in parts]) + settings.eps
    if (some := tiles[0].some_rows) is not None:  # zeros, whose norm is infinite where eps is 0
        square = jnp.where(some[:, None], square, 1)
    rate = lax.rsqrt(square)
    return [x * rate for x in parts], rate


def _mean(settings: Settings, parts: Parts) -> Float[Array, "t 1"]:
    return sum(jnp.sum(x, axis=1) for x in parts)[:, None] / settings.head_dim


def _gate(settings: Settings, z: Array) -> tuple[Array, Array]:
    """The activation and its derivative."""
    s = 1 / (1 + jnp.exp(-z))
    if settings.activation == "sigmoid":
        return s, s * (1 - s)
    return z * s, s * (1 + z * (1 - s))


def _read(tile: Tile, ref: Any) -> Float[Array, "t p"]:
    return tile.read(ref).astype(jnp.float32)


def _whole(x: Any) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda *at: (0,) * len(x.shape))
