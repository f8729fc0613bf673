"""The stack of residual blocks: what repeats is scanned, states are explicit."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.segments import last_segment
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import inner_dim, qk_dim
from xlstm_jax.models.layers import RESIDUAL_STREAM, LayerNorm, RMSNorm
from xlstm_jax.models.mlstm_blocks import (
    MLSTMBlock,
    MLSTMBlock7B,
    MLSTMBlockState,
    init_mlstm_state,
)
from xlstm_jax.models.slstm_block import SLSTMBlock, SLSTMBlockState, init_slstm_state
from xlstm_jax.parallel import compute_dtype, constrain
from xlstm_jax.typing import Activations, Array, Int, SegmentIds

# A stack of at most so many blocks is compiled without loops: it costs little time, and the loop's
# stacked intermediates cost more (a training step of 4 blocks at D 256 on a CPU: 5,130 tokens/s
# instead of 4,050).
SMALL_STACK = 4

BLOCKS = {"mlstm": MLSTMBlock, "slstm": SLSTMBlock, "mlstm_7b": MLSTMBlock7B}


class BackboneState(NamedTuple):
    """What the stack remembers of a sequence.

    Attributes:
        blocks: per run (`block_runs`, by name) the blocks' states, stacked on a leading axis; a
            tuple for a pattern of several blocks.
        segment: id of the document that the states belong to; -1 before the first.
    """

    blocks: Mapping[str, Any]
    segment: Int[Array, " B"]


class BlockRun(NamedTuple):
    """A stretch of blocks that is compiled once: a pattern of kinds, repeated.

    Attributes:
        name: of its parameters, after its first block. A pattern of several blocks has a level
            more: block_0, block_1, ...
        kinds: the pattern.
        start: index of the first block.
        repeats: how often the pattern stands there; the leading axis of its parameters.
    """

    name: str
    kinds: tuple[str, ...]
    start: int
    repeats: int

    def paths(self) -> list[tuple[str, ...]]:
        """Where the parameters of the pattern's blocks are."""
        if len(self.kinds) == 1:
            return [(self.name,)]
        return [(self.name, f"block_{offset}") for offset in range(len(self.kinds))]


def block_runs(config: ModelConfig) -> list[BlockRun]:
    """The stack as patterns that repeat, chosen so that as few blocks as possible are compiled.

    Equal neighbours make a run; so do the three pairs of [7:1]'s positions 3, 5, 7: its 13 runs of
    equal blocks become 5 of 7 blocks.
    """
    kinds = config.block_kinds
    # (blocks compiled, runs, the runs) from each block to the end
    best: list[tuple[int, int, tuple[BlockRun, ...]]] = [(0, 0, ())]
    for start in reversed(range(len(kinds))):
        candidates = []
        for period, repeats in _repetitions(kinds[start:]):
            blocks, runs, rest = best[len(kinds) - start - period * repeats]
            run = BlockRun(f"blocks_{start}", kinds[start : start + period], start, repeats)
            candidates.append((blocks + period, runs + 1, (run, *rest)))
        best.append(min(candidates, key=lambda candidate: candidate[:2]))
    return list(best[-1][2])


def _repetitions(kinds: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """(period, repeats) of everything the sequence begins with: one kind any number of times,
    longer patterns at least twice.
    """
    for period in range(1, len(kinds) // 2 + 1):
        pattern = kinds[:period]
        for repeats in range(2, len(kinds) // period + 1):
            if kinds[(repeats - 1) * period : repeats * period] != pattern:
                break
            yield period, repeats
    yield 1, 1


class Pattern(nn.Module):
    """Several blocks one after the other: the body of a scan over a pattern that repeats."""

    config: ModelConfig
    kinds: tuple[str, ...]
    train: bool

    @nn.compact
    def __call__(
        self, x: Activations, state: Any, first: Int[Array, ""], *segments: Any
    ) -> tuple[Activations, Any]:
        states = []
        for offset, kind in enumerate(self.kinds):
            block = _block(self.config, kind)(self.config, self.train, name=f"block_{offset}")
            x, after = block(x, None if state is None else state[offset], first + offset, *segments)
            states.append(after)
        return x, tuple(states)


# What the backward pass finds of a block, besides its input; the rest it computes again.
REMAT_POLICIES = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the projections' results
}


def _block(config: ModelConfig, kind: str) -> type[nn.Module]:
    block = BLOCKS[kind]
    if config.remat == "none":
        return block
    # inside a scan nothing can be merged anyway
    return nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[config.remat])


class Backbone(nn.Module):
    """A causal sequence-to-sequence layer [B T D] -> [B T D]: `num_blocks` residual blocks and a
    final norm.

    Usable by itself, wherever a recurrent layer is: `y, state = backbone.apply(variables, x,
    state)`.

    Attributes:
        apart: nothing is scanned or stacked; parameters and states are those of each block
            (`split_blocks`).
    """

    config: ModelConfig
    apart: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: BackboneState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Activations, BackboneState]:
        """The stack's output for x, in the compute dtype, and the state after its last token.

        Args:
            x: [B T D]; D is `config.dim`.
            state: result of an earlier call, or `init_state`; None: empty memories.
            segment_ids: [B T]; states are dropped where the id changes, also against the id with
                which `state` ended. A negative id is padding: it changes no state.
            train: use dropout; needs `rngs={"dropout": key}` where the rate is above 0.
        """
        config = self.config
        x = constrain(x.astype(compute_dtype(config.dtype)), *RESIDUAL_STREAM)
        previous_segment = None if state is None else state.segment
        if segment_ids is not None:
            segment_ids = segment_ids.astype(jnp.int32)  # as those of states are
        block_states = {}
        for name, blocks, index in (_blocks_apart if self.apart else _runs)(config, train):
            before = None if state is None else state.blocks[name]
            x, block_states[name] = blocks(x, before, index, segment_ids, previous_segment)
        norm = RMSNorm if config.block == "7b" else LayerNorm
        y = norm(config.norm_eps, name="final_norm")(x)

        if segment_ids is not None:
            segment = last_segment(segment_ids, previous_segment)
        else:
            segment = (
                jnp.full(x.shape[:1], -1, jnp.int32)
                if previous_segment is None
                else previous_segment
            )
        return y, BackboneState(block_states, segment)

    @nn.nowrap
    def init_state(self, batch_size: int, dtype=jnp.float32) -> BackboneState:
        """`init_backbone_state` of this stack's configuration."""
        return init_backbone_state(self.config, batch_size, dtype, self.apart)


def _runs(config: ModelConfig, train: bool) -> Iterator[tuple[str, nn.Module, Int[Array, " N"]]]:
    """Every run's name, its scan over stacked parameters and states, and the numbers of the blocks
    that its turns begin with.
    """
    for run in block_runs(config):
        body = (
            _block(config, *run.kinds)
            if len(run.kinds) == 1
            else functools.partial(Pattern, kinds=run.kinds)
        )
        scan = functools.partial(
            nn.scan,
            variable_axes={"params": 0, "statistics": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=run.repeats,
            unroll=run.repeats if config.num_blocks <= SMALL_STACK else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        yield (
            run.name,
            scan(body)(config, train=train, name=run.name),
            run.start + len(run.kinds) * jnp.arange(run.repeats),
        )


def _blocks_apart(
    config: ModelConfig, train: bool
) -> Iterator[tuple[str, nn.Module, Int[Array, ""]]]:
    """Every block's name, the block, and its number."""
    for index, kind in enumerate(config.block_kinds):
        name = f"blocks_{index}"
        yield name, _block(config, kind)(config, train, name=name), jnp.asarray(index)


def init_backbone_state(
    config: ModelConfig, batch_size: int, dtype=jnp.float32, apart: bool = False
) -> BackboneState:
    """The empty state, a function of the configuration alone. `dtype` is that of the convolutions'
    windows.
    """
    segment = jnp.full((batch_size,), -1, jnp.int32)
    if apart:
        kinds = enumerate(config.block_kinds)
        return BackboneState(
            {
                f"blocks_{index}": _init_block(config, kind, batch_size, dtype)
                for index, kind in kinds
            },
            segment,
        )
    states = {}
    for run in block_runs(config):
        pattern = tuple(_init_block(config, kind, batch_size, dtype) for kind in run.kinds)
        states[run.name] = _repeated(pattern if len(pattern) > 1 else pattern[0], run.repeats)
    return BackboneState(states, segment)


def _repeated(state: Any, repeats: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (repeats, *leaf.shape)), state)


def split_blocks(
    runs: Mapping[str, Any], config: ModelConfig, rows: Callable[[Array], Sequence[Array]]
) -> dict[str, Any]:
    """Parameters or states of the runs as those of each block, which a `Backbone` with `apart`
    takes.

    Args:
        rows: x[0], x[1], ... of a leaf x.
    """
    apart = {}
    for run in block_runs(config):
        for offset, blocks in enumerate(_pattern(runs[run.name], run)):
            leaves, structure = jax.tree.flatten(blocks)
            cut = [rows(leaf) for leaf in leaves]
            for repeat in range(run.repeats):
                apart[_name(run, repeat, offset)] = structure.unflatten(
                    [parts[repeat] for parts in cut]
                )
    return apart


def join_states(apart: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The states of the runs from those of each block: `split_blocks` undone."""
    runs = {}
    for run in block_runs(config):
        pattern = []
        for offset in range(len(run.kinds)):
            blocks = [apart[_name(run, repeat, offset)] for repeat in range(run.repeats)]
            pattern.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks))
        runs[run.name] = tuple(pattern) if len(pattern) > 1 else pattern[0]
    return runs


def _name(run: BlockRun, repeat: int, offset: int) -> str:
    return f"blocks_{run.start + repeat * len(run.kinds) + offset}"


def _pattern(tree: Any, run: BlockRun) -> Sequence[Any]:
    """What a run has for each block of its pattern: states are a tuple, parameters have names."""
    if len(run.kinds) == 1:
        return (tree,)
    return (
        tree
        if isinstance(tree, tuple)
        else [tree[f"block_{offset}"] for offset in range(len(run.kinds))]
    )


def _init_block(config: ModelConfig, kind: str, batch_size: int, dtype) -> Any:
    heads = config.num_heads
    cell_dtype = jnp.promote_types(compute_dtype(config.dtype), jnp.float32)

    def window(dim):
        return (
            jnp.zeros((batch_size, config.conv_width - 1, dim), dtype)
            if config.conv_width
            else None
        )

    if kind == "mlstm":
        inner = inner_dim(config)
        return MLSTMBlockState(
            init_mlstm_state(batch_size, heads, inner // heads, inner // heads, cell_dtype),
            window(inner),
        )
    if kind == "slstm":
        return SLSTMBlockState(
            init_slstm_state(batch_size, heads, config.dim // heads, cell_dtype),
            window(config.dim),
        )
    return init_mlstm_state(
        batch_size, heads, qk_dim(config) // heads, config.dim // heads, cell_dtype
    )
