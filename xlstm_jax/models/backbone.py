"""The stack of residual blocks: branches, blocks, and how they follow one another."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.segments import last_segment, segment_borders
from xlstm_jax.models import gpu_forms
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.models.layers import RESIDUAL_STREAM, Dropout, LayerNorm, RMSNorm
from xlstm_jax.models.mixer import Depth, Segments
from xlstm_jax.models.remat import policy_of, stack_of
from xlstm_jax.models.stack import Run, Stack, block_name
from xlstm_jax.parallel import compute_dtype, constrain, platform
from xlstm_jax.typing import Activations, Array, Int, SegmentIds


class BackboneState(NamedTuple):
    """What the stack remembers of a sequence.

    Attributes:
        blocks: by the block's name, a tuple with the state of each of its mixers.
        segment: [B], id of the document that the states belong to; -1 before the first.
        position: [B], how many of its tokens were read.
    """

    blocks: Mapping[str, Any]
    segment: Int[Array, " B"]
    position: Int[Array, " B"]


def make_norm(config: ModelConfig, name: str) -> Any:
    """The norm before a branch, after the embedding or after the stack; x itself for "none"."""
    if config.norm == "none":
        return lambda x: x
    norm = {"layer": functools.partial(LayerNorm, use_bias=config.norm_bias), "rms": RMSNorm}
    return norm[config.norm](config.norm_eps, name=name)


class Shared(NamedTuple):
    """What the layers of one mixer share (`Mixer.stack`).

    Attributes:
        rows: arrays [N ...] with a row for each of the mixer's N layers in the stack.
        first: [blocks], the number of each block's first layer among them.
    """

    rows: Any
    first: Int[Array, " blocks"]

    def of(self, index: Int[Array, ""], number: int) -> Any:
        """The row of the block's layer of that number; with `number` 0 its first."""
        row = self.first[index] + number
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=False), self.rows
        )


class Block(nn.Module):
    """x + dropout(mixer(norm(x))) for each of a block's mixers in turn: its branches."""

    config: ModelConfig
    mixers: tuple[str, ...]
    train: bool

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: Any,
        index: Int[Array, ""],
        segments: Segments | None,
        shared: Mapping[str, Shared],
    ) -> tuple[Activations, tuple[Any, ...]]:
        config, after = self.config, []
        depth = Depth(index, config.num_blocks)
        for number, mixer_name in enumerate(self.mixers):
            mixer, settings = config.of(mixer_name)
            again = self.mixers[:number].count(mixer_name)  # one block may have a mixer twice
            name = f"{mixer_name}_{again}" if again else mixer_name
            branch = mixer.module(settings, config.dim, depth, self.train, name=name)
            before = None if state is None else state[number]
            share = {"share": shared[mixer_name].of(index, again)} if mixer.stack else {}
            norm = make_norm(config, f"{name}_norm")
            y, branch_state = branch(norm(x), before, segments, **share)
            y = Dropout(config.dropout)(y, deterministic=not self.train)
            x = constrain(x + y if config.residual else y, *RESIDUAL_STREAM)
            if state is not None and platform() == "gpu":
                x = gpu_forms.computed_once(x)
            x = checkpoint_name(x, "middle")
            after.append(branch_state)
        return x, tuple(after)


class Pattern(nn.Module):
    """Several blocks one after the other: the body of a scan over what repeats."""

    config: ModelConfig
    blocks: tuple[tuple[str, ...], ...]
    train: bool

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: Any,
        first: Int[Array, ""],
        segments: Segments | None,
        shared: Mapping[str, Shared],
    ) -> tuple[Activations, dict[str, Any]]:
        block = _block_class(self.config, scanned=True)
        states = {}
        for offset, mixers in enumerate(self.blocks):
            name = block_name(offset)
            before = None if state is None else state[name]
            x, states[name] = block(self.config, mixers, self.train, name=name)(
                x, before, first + offset, segments, shared
            )
        return x, states


def _block_class(config: ModelConfig, *, scanned: bool) -> type[nn.Module]:
    policy = policy_of(config.remat)
    if policy is None:
        return Block
    # The compiler must not merge what is computed again with what was computed first. Inside a scan
    # it can't: the backward pass is another loop.
    return nn.remat(Block, prevent_cse=not scanned, policy=policy)


class Backbone(nn.Module):
    """A causal sequence-to-sequence layer [B T D] -> [B T D]: residual blocks and a final norm.

    Usable by itself, wherever a recurrent layer is: `y, state = backbone.apply(variables, x,
    state)`.

    Attributes:
        stacked: equal blocks are compiled once; their parameters and states are stacked (`Stack`),
            where that serves (`stack_of`).
    """

    config: ModelConfig
    stacked: bool = False

    @property
    def stack(self) -> Stack:
        """How the blocks lie in this module's parameters and states."""
        return stack_of(self.config.layout, self.config.remat, stacked=self.stacked)

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: BackboneState | None = None,
        *,
        segments: SegmentIds | Segments | None = None,
        train: bool = False,
    ) -> tuple[Activations, BackboneState]:
        """The stack's output for x, in the compute dtype, and the state after its last token.

        Args:
            x: [B T D]; D is `config.dim`.
            state: result of an earlier call, or `init_state`; None: empty memories.
            segments: [B T] ids; states are dropped where the id changes, also against the id with
                which `state` ended. A negative id is padding: it changes no state. Or what
                `segments_of` made of them.
            train: use dropout; needs `rngs={"dropout": key}` where the rate is above 0.

        Raises:
            ValueError: the state lacks the memory of a mixer that grows with the text.
        """
        config = self.config
        self._check_can_go_on(state)
        if not isinstance(segments, Segments):
            segments = segments_of(segments, state, x.shape[:2])
        x = constrain(x.astype(compute_dtype(config.dtype)), *RESIDUAL_STREAM)
        blocks, shared = {}, self._shared()
        for run in self.stack.runs:
            before = None if state is None else state.blocks[run.name]
            x, blocks[run.name] = self._run(run, train)(x, before, segments, shared)
        y = make_norm(config, "final_norm")(x) if config.final_norm else x
        return y, BackboneState(blocks, *_end_of(segments, state, x.shape[:2]))

    @nn.nowrap
    def _shared(self) -> dict[str, Shared]:
        """By their names, what the layers of mixers share: parameters "NAME_stack" beside the
        blocks.
        """
        config, shared = self.config, {}
        for name in config.mixer_names:
            mixer, settings = config.of(name)
            if mixer.stack is None:
                continue
            counts = np.array([block.count(name) for block in config.layout])
            rows = mixer.stack(settings, config.dim, int(counts.sum()), name=f"{name}_stack")()
            first = np.cumsum(counts) - counts
            shared[name] = Shared(rows, jnp.asarray(first, jnp.int32))
        return shared

    @nn.nowrap
    def _run(self, run: Run, train: bool):
        if run.repeats == 1:
            (mixers,) = run.pattern
            block = _block_class(self.config, scanned=False)(
                self.config, mixers, train, name=run.name
            )
            index = jnp.asarray(run.start, jnp.int32)
            return lambda x, state, segments, shared: block(x, state, index, segments, shared)
        scan = nn.scan(
            Pattern,
            variable_axes={"params": 0, "statistics": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=run.repeats,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, run.pattern, train, name=run.name)
        firsts = run.start + len(run.pattern) * jnp.arange(run.repeats, dtype=jnp.int32)
        return lambda x, state, segments, shared: scan(x, state, firsts, segments, shared)

    @nn.nowrap
    def _check_can_go_on(self, state: BackboneState | None) -> None:
        for run in self.stack.runs if state is not None else ():
            for offset, names in enumerate(run.pattern):
                states = state.blocks[run.name]
                states = states[block_name(offset)] if run.repeats > 1 else states
                for name, memory in zip(names, states, strict=True):
                    if memory is None and self.config.of(name)[0].grows:
                        raise ValueError(
                            f"this state has no memory of {name!r}, which grows with the text: a "
                            "call without a state returns none. To go on, begin with "
                            "init_state(batch_size, cache_length=N)"
                        )

    @nn.nowrap
    def init_state(
        self, batch_size: int, dtype: Any = None, cache_length: int | None = None
    ) -> BackboneState:
        """The empty state, a function of the configuration alone.

        Args:
            dtype: of remembered activations: the windows of convolutions, caches; by default
                float32, float64 where the model computes in it.
            cache_length: tokens that a mixer whose memory grows can hold; others ignore it.

        Raises:
            ValueError: a mixer grows and no cache_length is given.
        """
        config = self.config
        if cache_length is None and (growing := growing_mixers(config)):
            raise ValueError(
                f"the memory of {growing[0]!r} grows with the text; give init_state a cache_length"
            )

        if dtype is None:
            dtype = jnp.promote_types(compute_dtype(config.dtype), jnp.float32)

        def empty(name: str) -> Any:
            mixer, settings = config.of(name)
            return mixer.empty_state(settings, config.dim, batch_size, dtype, cache_length)

        blocks = {
            block_name(number): tuple(empty(name) for name in names)
            for number, names in enumerate(config.layout)
        }
        return BackboneState(
            self.stack.stack(blocks),
            segment=jnp.full((batch_size,), -1, jnp.int32),
            position=jnp.zeros((batch_size,), jnp.int32),
        )

    @nn.nowrap
    def flops(self, context_length: int, counting: Sequence[str] = ()) -> float:
        """Forward FLOPs of the mixers, per token of a sequence of that length; `counting` as of
        `Mixer.counted`.
        """
        return sum(
            mixer.counted(settings, self.config.dim, context_length, counting)
            for names in self.config.layout
            for mixer, settings in map(self.config.of, names)
        )


def growing_mixers(config: ModelConfig) -> list[str]:
    """The mixers of the stack whose memory grows with the text."""
    return [name for name in config.mixer_names if config.of(name)[0].grows]


def segments_of(
    ids: SegmentIds | None, state: BackboneState | None, shape: tuple[int, int]
) -> Segments:
    """The documents and positions of [B T] tokens that follow a state."""
    previous, position = (None, None) if state is None else (state.segment, state.position)
    if position is None:
        position = jnp.zeros(shape[:1], jnp.int32)
    if ids is None:
        positions = position[:, None] + jnp.arange(shape[1], dtype=jnp.int32)
        return Segments(None, previous, positions)
    ids = ids.astype(jnp.int32)
    starts, padding = segment_borders(ids, previous)
    count = jnp.cumsum(~padding, axis=1, dtype=jnp.int32)  # tokens of the row up to this one
    at_start = jnp.where(starts, count - 1, -1)
    before_document = jax.lax.cummax(at_start, axis=1)
    # before the first border the document of the state goes on
    offset = jnp.where(before_document < 0, -position[:, None], before_document)
    return Segments(ids, previous, jnp.maximum(count - 1 - offset, 0))


def _end_of(
    segments: Segments, state: BackboneState | None, shape: tuple[int, int]
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """(id, number of tokens read) of the document that the sequence ends in."""
    if segments.ids is None:
        previous = segments.previous
        segment = jnp.full(shape[:1], -1, jnp.int32) if previous is None else previous
        return segment, segments.positions[:, -1] + 1
    real = segments.ids >= 0
    last = shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    after = jnp.take_along_axis(segments.positions, last[:, None], axis=1)[:, 0] + 1
    before = jnp.zeros(shape[:1], jnp.int32) if state is None else state.position
    position = jnp.where(jnp.any(real, axis=1), after, before)
    return last_segment(segments.ids, segments.previous), position
