"""The norm of heads and what follows it (norm_of_heads.py) on TPUs: the kernels of `mlstm_back`.

A program has all channels of some tokens in VMEM, and takes a head of a few of them at a time,
which fit the vector registers from the first sum to the result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.norm_of_heads import Given, Norm, write_backward, write_forward
from pallas_kernels.tpu_sizes import LANES, SUBLANES, VMEM_LIMIT
from pallas_kernels.tpu_tiles import cost, existing, split_tiles, tile_block, tokens_of, which_exist
from pallas_kernels.typing import Rows

STRIP = 16 * 1024  # entries of a strip, at most, if it has more than 16 tokens: 16 registers
ARRAYS = 7  # of a backward pass


class Settings(NamedTuple):
    """What a kernel is specialised on: what it computes, tokens of a program, tokens of a strip,
    how to interpret.
    """

    norm: Norm
    tokens: int
    strip: int
    interpret: Any


class Piece(NamedTuple):
    """A strip of tokens of a head, as norm_of_heads.py takes it."""

    rows: Any
    columns: Any
    some_rows: Bool[Array, "t 1"] | None

    def read(self, ref: Any) -> Float[Array, "t V"]:
        """The piece of an array; zeros for tokens that do not exist."""
        return existing(ref[self.rows, self.columns], self.some_rows)

    def read_row(self, ref: Any) -> Float[Array, "1 V"]:
        """The piece's channels of a row that all tokens have in common."""
        return ref[:, self.columns]

    def write(self, ref: Any, x: Float[Array, "t V"]) -> None:
        """Writes the piece of an array, in its type."""
        ref[self.rows, self.columns] = x.astype(ref.dtype)


def settings_for(norm: Norm, channels: int, dtype: jnp.dtype, interpret: Any) -> Settings:
    """Of so many channels over all heads.

    Raises NotImplementedError for heads that are no multiple of 128 channels, and for channels of
    which VMEM holds fewer than 128 tokens.
    """
    if norm.head_dim % LANES:
        raise NotImplementedError(
            f"a head must be a multiple of {LANES} channels; it has {norm.head_dim}"
        )
    tokens = tokens_of(ARRAYS, channels, dtype)
    strip = max(16, min(tokens, STRIP // pl.next_power_of_2(norm.head_dim)))
    return Settings(norm, tokens, strip, interpret)


def forward(settings: Settings, given: Given) -> Rows:
    """y."""
    (rows, channels), norm = given.h.shape, settings.norm

    def mlstm_back(*refs: Any) -> None:
        *ins, y = refs

        def step(piece: Piece) -> None:
            write_forward(norm, [piece], given.replaced(ins), y)

        _each_piece(settings, given.h.shape, pl.program_id(0), step)

    tile = tile_block(settings.tokens, channels)
    arrays, blocks = _ins(given, tile)
    return pl.pallas_call(
        mlstm_back,
        grid=(pl.cdiv(rows, settings.tokens),),
        in_specs=blocks,
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(given.h.shape, given.h.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost(0, arrays, [given.h]),
        interpret=settings.interpret,
        name="mlstm_back",
    )(*arrays)


def backward(settings: Settings, dy: Rows, given: Given) -> tuple[Array, ...]:
    """dh, dgate and dc where there are gate and c, and the float32 gradients of scale (and skip):
    [1 I] or [2 I].
    """
    (rows, channels), norm = given.h.shape, settings.norm
    parts, steps = split_tiles(pl.cdiv(rows, settings.tokens))
    number = 1 if given.c is None else 2  # rows of sums

    def mlstm_back_back(dy: Any, *refs: Any) -> None:
        ins, (*gradients, sums) = refs[: len(arrays)], refs[len(arrays) :]
        part, at = pl.program_id(0), pl.program_id(1)

        @pl.when(at == 0)
        def _() -> None:
            sums[...] = jnp.zeros_like(sums)

        def step(piece: Piece) -> None:
            (added,) = write_backward(norm, [piece], dy, given.replaced(ins), gradients)
            for row, x in enumerate(added):
                strips = x.reshape(-1, SUBLANES, norm.head_dim)
                sums[row, :, piece.columns] += jnp.sum(strips, axis=0)

        _each_piece(settings, given.h.shape, part * steps + at, step)

    tile = tile_block(settings.tokens, channels, steps)
    arrays, blocks = _ins(given, tile)
    like_h = jax.ShapeDtypeStruct(given.h.shape, given.h.dtype)
    gradients = [like_h for x in (given.h, given.gate, given.c) if x is not None]
    outs = [*gradients, jax.ShapeDtypeStruct((parts, number, SUBLANES, channels), jnp.float32)]
    *gradients, sums = pl.pallas_call(
        mlstm_back_back,
        grid=(parts, steps),
        in_specs=[tile, *blocks],
        out_specs=[
            *[tile] * len(gradients),
            pl.BlockSpec((None, number, SUBLANES, channels), lambda part, step: (part, 0, 0, 0)),
        ],
        out_shape=outs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost(0, [dy, *arrays], outs),
        interpret=settings.interpret,
        name="mlstm_back_back",
    )(dy, *arrays)
    return *gradients, jnp.sum(sums, axis=(0, 2))


def _ins(given: Given, tile: pl.BlockSpec) -> tuple[list[Array], list[pl.BlockSpec]]:
    """The arrays, rows of weights as [1 I], and their blocks."""
    whole = pl.BlockSpec((1, given.scale.shape[0]), lambda *at: (0, 0))
    arrays = [x for x in given if x is not None]
    return (
        [x[None, :] if x.ndim == 1 else x for x in arrays],
        [whole if x.ndim == 1 else tile for x in arrays],
    )


def _each_piece(
    settings: Settings, shape: tuple[int, int], tile: Array, step: Callable[[Piece], None]
) -> None:
    """step for every strip of every head of a tile."""
    (rows, channels), (norm, tokens, strip, _) = shape, settings

    def of_strip(n: Array, _: None) -> None:
        start = pl.multiple_of(n * strip, strip)
        some = which_exist(rows, tokens, tile * tokens + start, strip)

        def of_head(head: Array, _: None) -> None:
            column = pl.multiple_of(head * norm.head_dim, LANES)
            step(Piece(pl.ds(start, strip), pl.ds(column, norm.head_dim), some))

        lax.fori_loop(0, channels // norm.head_dim, of_head, None)

    lax.fori_loop(0, tokens // strip, of_strip, None)
