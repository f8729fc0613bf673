"""What a mixer is: the part of a residual branch that moves information between tokens or channels.

A mixer is one file in `models/mixers/`: a frozen section of settings, a Flax module, and a `Mixer`
that says what the rest of the project asks about it. The module has the attributes

    settings: its section;  dim: D;  depth: where in the stack it stands;  train: use dropout

and the call `(x [B T D], state, segments) -> (y [B T D], state)`. A state of None means empty. A
mixer whose layers share parameters (`Mixer.stack`) takes its own part of them as `share`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.errors import UserError
from xlstm_jax.typing import Array, Int, SegmentIds


class Depth(NamedTuple):
    """The place of a block in the stack.

    Attributes:
        index: counted from 0; traced where equal blocks are scanned.
        num_blocks: of the whole stack.
    """

    index: int | Int[Array, ""]
    num_blocks: int


class Segments(NamedTuple):
    """The documents that a batch's tokens belong to.

    Attributes:
        ids: [B T], changes where a new document begins, negative for padding; None: each row goes
            on with one document.
        previous: [B], the id with which the state ended; negative or None where there was none.
        positions: [B T], how many tokens of its document stand before each token; None: all rows
            begin here.
    """

    ids: SegmentIds | None = None
    previous: Int[Array, " B"] | None = None
    positions: Int[Array, "B T"] | None = None

    def positions_of(self, shape: tuple[int, int]) -> Int[Array, "B T"]:
        """The positions of [B T] tokens, also where all rows begin here."""
        if self.positions is not None:
            return self.positions
        return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


ONE_DOCUMENT = Segments()


class Parts(NamedTuple):
    """Over how many devices a mesh spreads heads and channels (`tensor`) and the time
    (`sequence`; -1: as many as are left).
    """

    tensor: int = 1
    sequence: int = 1


ONE_DEVICE = Parts()


def check_heads(name: str, num_heads: int, parts: Parts) -> None:
    """Refuses a mesh over which the heads of the mixer `name` can't be spread evenly."""
    if num_heads % parts.tensor:
        raise UserError(
            f"config key mesh.tensor is {parts.tensor}, which does not divide "
            f"model.{name}.num_heads {num_heads}; use a divisor of it"
        )


def check_whole_time(name: str, parts: Parts) -> None:
    """Refuses a mesh that spreads the time, which the mixer `name` reads from left to right on one
    device.
    """
    if parts.sequence != 1:
        raise UserError(
            f"config key mesh.sequence is {parts.sequence}, but the model has the mixer {name!r}, "
            "whose time is not spread over devices here; use mesh.sequence 1"
        )


def _no_memory(settings: Any, dim: int, batch_size: int, dtype: Any, cache_length: int | None):
    """The state of a mixer that remembers nothing."""
    return ()


def _accepts(settings: Any, dim: int, parts: Parts) -> None:
    """Refuses nothing."""


Flops = Callable[[Any, int, int], float]


class Mixer(NamedTuple):
    """What the project knows of a mixer.

    Attributes:
        section: the frozen dataclass of its settings (`xlstm_jax.settings`).
        module: the Flax module.
        flops: (settings, dim, context_length) -> forward FLOPs per token. A multiply-add is two;
            no norms, no recomputation.
        countings: other ways to count them by name, functions like `flops`: another form of the
            mixer ("parallel", "recurrent"), or a publication's conventions.
        empty_state: (settings, dim, batch_size, dtype, cache_length) -> the state before the first
            token. `dtype` is that of remembered activations (a convolution's window, a cache);
            `cache_length` is for mixers that grow.
        check: (settings, dim, parts) -> None; raises `UserError` for what can't work together.
        cast: names of its modules whose kernels are only ever used in the compute dtype, so that
            inference may store them in it without changing a bit of a result.
        grows: its memory grows with the text: without a given state it returns none, and a given
            one has `cache_length` places.
        resets: it can forget at a document's border.
        stack: a Flax module made from (settings, dim, count) with the parameters that the mixer's
            `count` layers share; the stack has one of it. Called without arguments it gives arrays
            with a row [count ...] for each layer, in their order; the mixer's call gets its own
            row as the keyword `share`.
    """

    section: type
    module: type[nn.Module]
    flops: Flops
    empty_state: Callable[[Any, int, int, Any, int | None], Any] = _no_memory
    check: Callable[[Any, int, Parts], None] = _accepts
    cast: frozenset[str] = frozenset()
    grows: bool = False
    resets: bool = True
    stack: type[nn.Module] | None = None
    countings: Mapping[str, Flops] = {}

    def counted(
        self, settings: Any, dim: int, context_length: int, counting: Sequence[str] = ()
    ) -> float:
        """Forward FLOPs per token by the first of the named countings that the mixer has, else by
        `flops`.
        """
        own = (self.countings[name] for name in counting if name in self.countings)
        return next(own, self.flops)(settings, dim, context_length)
