"""How the blocks of a stack lie: one by one, or equal ones stacked so that they compile once.

Whoever looks from outside (checkpoints, other projects' formats, a notebook) sees `block_0`,
`block_1`, ...: that is how a model is initialised. Training of a deep model stacks the parameters
of blocks that repeat on a leading axis and scans over it, which compiles each of them once;
`Stack` finds what repeats and converts trees between the two forms. Nobody else knows the stacked
form.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xlstm_jax.typing import Array

# A stack of at most so many blocks is never scanned: compiling it costs little, and the loop's
# stacked intermediates cost time (a training step of 4 blocks at D 256 on a CPU: 5,130 tokens/s
# unrolled, 4,050 scanned).
SMALL_STACK = 4

Block = tuple[str, ...]  # the names of its mixers


class Run(NamedTuple):
    """A stretch of the stack that is compiled once: a pattern of blocks, repeated.

    Attributes:
        start: number of the first block.
        pattern: the blocks that repeat.
        repeats: how often; with 1 nothing is stacked.
    """

    start: int
    pattern: tuple[Block, ...]
    repeats: int

    @property
    def name(self) -> str:
        """The name of its parameters and states: "block_3", or "blocks_4_to_9" where they are
        stacked.
        """
        if self.repeats == 1:
            return block_name(self.start)
        return f"blocks_{self.start}_to_{self.start + self.repeats * len(self.pattern) - 1}"

    def number(self, repeat: int, offset: int) -> int:
        """The number of a block in the stack."""
        return self.start + repeat * len(self.pattern) + offset


def block_name(number: int) -> str:
    """The name of a block's parameters and states."""
    return f"block_{number}"


class Stack:
    """The blocks of a model, and the two forms of a tree that holds something for each of them.

    A tree is anything that contains mappings with an entry per block: parameters, gradients, an
    optimizer's moments, states. All else in it stays as it is.
    """

    def __init__(self, layout: tuple[Block, ...], *, stacked: bool):
        self.layout = layout
        scanned = stacked and len(layout) > SMALL_STACK
        self.runs = _runs(layout) if scanned else _one_by_one(layout)

    def by_number(
        self, tree: Any, rows: Callable[[Array], Sequence[Array]] = lambda x: list(x)
    ) -> Any:
        """The tree with an entry for each block; `rows` gives x[0], x[1], ... of a stacked leaf."""

        def unstack(node: Mapping[str, Any]) -> dict[str, Any]:
            node = dict(node)
            for run in self._stacked_runs():
                whole = node.pop(run.name)
                for offset in range(len(run.pattern)):
                    leaves, structure = jax.tree.flatten(whole[block_name(offset)])
                    cut = [rows(leaf) for leaf in leaves]
                    for repeat in range(run.repeats):
                        row = structure.unflatten([parts[repeat] for parts in cut])
                        node[block_name(run.number(repeat, offset))] = row
            return node

        return self._map(tree, unstack, {run.name for run in self._stacked_runs()})

    def stack(
        self, tree: Any, join: Callable[[Sequence[Array]], Array] = lambda rows: jnp.stack(rows)
    ) -> Any:
        """`by_number` undone: the entries of repeating blocks stacked on a leading axis."""

        def stacked(node: Mapping[str, Any]) -> dict[str, Any]:
            node = dict(node)
            for run in self._stacked_runs():
                node[run.name] = {
                    block_name(offset): jax.tree.map(
                        lambda *leaves: join(leaves),
                        *(
                            node.pop(block_name(run.number(repeat, offset)))
                            for repeat in range(run.repeats)
                        ),
                    )
                    for offset in range(len(run.pattern))
                }
            return node

        firsts = {block_name(run.start) for run in self._stacked_runs()}
        return self._map(tree, stacked, firsts)

    @property
    def is_stacked(self) -> bool:
        """Whether the two forms differ."""
        return any(self._stacked_runs())

    def _stacked_runs(self) -> Iterator[Run]:
        return (run for run in self.runs if run.repeats > 1)

    def _map(self, tree: Any, change: Callable[[Mapping[str, Any]], Any], names: set[str]) -> Any:
        """`change` applied to every mapping that has all these names."""
        if not names:
            return tree

        def holds_blocks(node: Any) -> bool:
            return isinstance(node, Mapping) and names <= node.keys()

        return jax.tree.map(
            lambda node: change(node) if holds_blocks(node) else node, tree, is_leaf=holds_blocks
        )


def _one_by_one(layout: tuple[Block, ...]) -> tuple[Run, ...]:
    return tuple(Run(number, (block,), 1) for number, block in enumerate(layout))


def _runs(layout: tuple[Block, ...]) -> tuple[Run, ...]:
    """The stack as patterns that repeat, chosen so that as few blocks as possible are compiled.

    Equal neighbours make a run, and so does a pattern of several blocks that repeats. Of the
    paper's 48 blocks of xLSTM[7:1], the equal neighbours alone are 13 runs, each with a block to
    compile; as some of them repeat as a pattern, 5 runs with 7 blocks to compile are enough.
    """
    # from each block to the end: (blocks compiled, number of runs, the runs)
    best: list[tuple[int, int, tuple[Run, ...]]] = [(0, 0, ())]
    for start in reversed(range(len(layout))):
        candidates = []
        for period, repeats in _repetitions(layout[start:]):
            blocks, runs, rest = best[len(layout) - start - period * repeats]
            run = Run(start, layout[start : start + period], repeats)
            candidates.append((blocks + period, runs + 1, (run, *rest)))
        best.append(min(candidates, key=lambda candidate: candidate[:2]))
    return best[-1][2]


def _repetitions(layout: tuple[Block, ...]) -> Iterator[tuple[int, int]]:
    """(period, repeats) of everything the sequence begins with: patterns at least twice, or one
    block once.
    """
    for period in range(1, len(layout) // 2 + 1):
        pattern = layout[:period]
        for repeats in range(2, len(layout) // period + 1):
            if layout[(repeats - 1) * period : repeats * period] != pattern:
                break
            yield period, repeats
    yield 1, 1
