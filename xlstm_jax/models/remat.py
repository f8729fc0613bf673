"""What the backward pass finds of a block, and what it computes again (`model.remat`).

Values carry names where they are made (`jax.ad_checkpoint.checkpoint_name`): those of the cells in
`pallas_kernels`, the others in the mixers. A setting lists the names that are kept besides every
block's input; all else is computed again from what is kept.
"""

from collections.abc import Callable
from typing import Any

import jax

from xlstm_jax.errors import UserError
from xlstm_jax.models.stack import Block, Stack
from xlstm_jax.parallel import platform

KEPT = {
    "cell": "what a cell makes: its output, its states",
    "qkv": "what enters it: q, k, v or gates, and the output gate",
    "conv": "the convolution after its SiLU",
    "ffn": "what a feed-forward layer multiplies",
    "middle": "the sum behind each branch of a block",
    "dots": "the results of all products with kernels",
    "operands": "what enters a layer's products: norms, gated outputs, kernels in their type",
}
# Settings that stand alone: everything is kept, every block's input alone, or what `auto` chooses.
EVERYTHING, INPUTS, AUTO = "none", "block", "auto"
# What "auto" tries, the most first. In a loop over stacked blocks, what is elementwise is computed
# again even where there is room: to write it into the stacked arrays and read it takes longer
# (`stack_of`).
RICHEST_FIRST = (
    "cell+qkv+conv+operands+dots",
    "cell+qkv+conv+dots",
    "cell+qkv+conv+middle",
    "cell+middle",
    "dots",  # for wide heads, whose states are the most there is (1.3B: 1,041 instead of 1,144 ms)
    INPUTS,
)
# At most so many blocks stand apart: each adds about five seconds of compiling on two cores.
MOST_APART = 48


def names_of(remat: str) -> tuple[str, ...]:
    """The names of what is kept, in a setting such as "cell+qkv".

    Raises:
        UserError: it is neither a list of names nor a setting that stands alone.
    """
    names = tuple(name.strip() for name in remat.split("+"))
    if unknown := [name for name in names if name not in KEPT]:
        raise UserError(
            f"config key model.remat is {remat!r}, of which {unknown[0]!r} is nothing that can be "
            f"kept; give {EVERYTHING!r}, {INPUTS!r}, {AUTO!r}, or one or more of {', '.join(KEPT)} "
            'with "+" between them'
        )
    return names


def richest_first(layout: tuple[Block, ...]) -> tuple[str, ...]:
    """What "auto" tries for this stack on the devices of the mesh in context, the most first."""
    apart = not stack_of(layout, EVERYTHING, stacked=True).is_stacked
    return (EVERYTHING, *RICHEST_FIRST) if apart else RICHEST_FIRST


def check_remat(remat: str) -> None:
    """Raises `UserError` as `names_of`."""
    if remat not in (EVERYTHING, INPUTS, AUTO):
        names_of(remat)


def policy_of(remat: str) -> Callable[..., Any] | None:
    """The policy for `jax.checkpoint`; None where nothing is computed again.

    "auto" is what training replaces by its choice; a model that is used by itself keeps the inputs.
    """
    policies = jax.checkpoint_policies
    if remat == EVERYTHING:
        return None
    if remat in (INPUTS, AUTO):
        return policies.nothing_saveable
    names = names_of(remat)
    named = policies.save_only_these_names(*names)
    if "dots" not in names:
        return named
    return policies.save_from_both_policies(named, policies.dots_with_no_batch_dims_saveable)


def stack_of(layout: tuple[Block, ...], remat: str, *, stacked: bool) -> Stack:
    """How the blocks of a model lie on the devices of the mesh in context: `stacked` or one by one.

    On a GPU, blocks of which something is kept are never stacked. A loop over them writes all that
    is kept into stacked arrays and reads it from there, which takes as long as computing it again.
    6 blocks of 125M on an H100, 32 x 2048, modelled ms a step in a loop and one by one: "block"
    130.6 and 130.2, "cell" 129.5 and 125.3, "none" 144.5 and 114.8.
    """
    keeps = remat not in (INPUTS, AUTO)
    apart = keeps and len(layout) <= MOST_APART and platform() == "gpu"
    return Stack(layout, stacked=stacked and not apart)
