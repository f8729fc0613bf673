"""What the Triton kernels of `mlstm_front` share: sizes, tiles of some tokens by some channels, the
convolution on them.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mlstm_front.call import Inner


class Blocks(NamedTuple):
    """Sizes, each a power of two: tokens and channels of a tile; warps of a program."""

    tokens: int = 64
    channels: int = 64
    warps: int = 8


class Settings(NamedTuple):
    """What a call is specialised on.

    interpret: as `pl.pallas_call` takes it.
    size: i, channels of a block.
    stretches: parts of a sequence, each with its own sums over tokens in the backward pass.
    """

    interpret: bool
    size: int
    stretches: int
    blocks: Blocks = Blocks()


class Operands(NamedTuple):
    """What the convolution reads; places.py says what sources are."""

    sources: Int[Array, "B W T"]
    u: Inner
    window: Float[Array, "B W-1 I"] | None
    conv_kernel: Float[Array, "W I"]
    conv_bias: Float[Array, " I"]


class Group:
    """Some channels: `columns` are their numbers, `inside` says which of them exist."""

    def __init__(self, settings: Settings, index: Array, channels: int) -> None:
        size = settings.blocks.channels
        self.columns = index * size + jnp.arange(size)
        self.inside = self.columns < channels

    def row(self, ref: Any, *before: int) -> Float[Array, "1 g"]:
        """One number per channel, float32."""
        x = load(ref.at[(*before, self.columns)], self.inside)
        return x.astype(jnp.float32)[None, :]


class Tile:
    """Some tokens: `rows` are their numbers, `inside` says which of them exist, `met` has what they
    meet at each tap (in the backward pass: who meets them), `real` says which are no padding.
    """

    def __init__(self, settings: Settings, index: Array, places: Any) -> None:
        size, (width, time) = settings.blocks.tokens, places.shape
        self.rows = index * size + jnp.arange(size)
        self.inside = self.rows < time
        self.reach = width - 1
        self.met = [load(places.at[tap, self.rows], self.inside, -1) for tap in range(width)]
        self.real = self.met[-1] >= 0

    def read(self, ref: Any, group: Group) -> Float[Array, "t g"]:
        """The tokens' own entries; zeros for those that do not exist."""
        return self._read(ref, self.rows, self.inside, group)

    def read_met(self, ref: Any, tap: int, group: Group) -> Float[Array, "t g"]:
        """Those of the tokens that are met at a tap; zeros for nobody."""
        rows = self.met[tap] - self.reach
        return self._read(ref, rows, rows >= 0, group)

    def read_window(self, ref: Any, tap: int, group: Group) -> Float[Array, "t g"]:
        """Those of the window that are met at a tap; zeros for others."""
        place = self.met[tap]
        there = (place >= 0) & (place < self.reach)
        return self._read(ref, place, there, group)

    def write(self, ref: Any, x: Float[Array, "t g"], group: Group) -> None:
        """Writes the tokens' own entries."""
        mask = self.inside[:, None] & group.inside[None, :]
        store(ref.at[self.rows[:, None], group.columns[None, :]], x.astype(ref.dtype), mask)

    def read_whole(self, ref: Any) -> Float[Array, "t P"]:
        """All numbers of each token; zeros for tokens that do not exist."""
        mask = jnp.broadcast_to(self.inside[:, None], (self.rows.shape[0], ref.shape[-1]))
        return load(ref.at[self.rows[:, None], jnp.arange(ref.shape[-1])[None, :]], mask)

    def write_whole(self, ref: Any, x: Float[Array, "t P"]) -> None:
        """Writes all numbers of each token."""
        mask = jnp.broadcast_to(self.inside[:, None], x.shape)
        store(ref.at[self.rows[:, None], jnp.arange(x.shape[-1])[None, :]], x, mask)

    def convolve(
        self, refs: Operands, group: Group
    ) -> tuple[list[Float[Array, "t g"]], Float[Array, "t g"]]:
        """What each tap meets, the last one in the type of u and the others in float32; the sum y.

        y of a padding token means nothing.
        """
        inputs = []
        for tap in range(self.reach):
            x = self.read_met(refs.u, tap, group).astype(jnp.float32)
            if refs.window is not None:
                x = x + self.read_window(refs.window, tap, group).astype(jnp.float32)
            inputs.append(x)
        inputs.append(self.read(refs.u, group))
        y = group.row(refs.conv_bias)
        for tap, x in enumerate(inputs):
            y = y + x.astype(jnp.float32) * group.row(refs.conv_kernel, tap)
        return inputs, y

    def _read(self, ref: Any, rows: Array, there: Bool[Array, " t"], group: Group) -> Array:
        at = ref.at[rows[:, None], group.columns[None, :]]
        return load(at, there[:, None] & group.inside[None, :])


def load(ref: Any, mask: Array, other: int = 0) -> Array:
    """What stands there, `other` where the mask is False."""
    from jax.experimental.pallas import triton

    return triton.load(ref, mask=mask, other=other)


def store(ref: Any, x: Array, mask: Array) -> None:
    """Writes where the mask is True."""
    from jax.experimental.pallas import triton

    triton.store(ref, x, mask=mask)


def groups_of(settings: Settings, channels: int) -> int:
    """How many groups the channels make."""
    return pl.cdiv(channels, settings.blocks.channels)


def whole(x: Any) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda *at: (0,) * len(x.shape))


def of_row(x: Any, axis: int) -> pl.BlockSpec:
    """An array's entries of one row of the batch; the row is this index of a program."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda *at: (at[axis], *(0,) * (len(x.shape) - 1)))


def with_blocks(operands: Operands, axis: int) -> list[tuple[Array | None, pl.BlockSpec | None]]:
    """The operands and their blocks."""
    sources, u, window, kernel, bias = operands
    return [
        (sources, of_row(sources, axis)),
        (u, of_row(u, axis)),
        (window, None if window is None else of_row(window, axis)),
        (kernel, whole(kernel)),
        (bias, whole(bias)),
    ]
