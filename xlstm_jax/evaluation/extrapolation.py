"""Perplexity at contexts longer than those of training: the same tokens for every length, in
constant memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from xlstm_jax.data.loader import Batch, TokenSource, eval_batches
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.scoring import token_scores
from xlstm_jax.parallel import batch_sharding, compute_dtype
from xlstm_jax.tasks.perplexity import target_count
from xlstm_jax.typing import Array, Float

DOUBLINGS = 6  # contexts by default: the trained length times 1, 2, 4, 8, 16, 32
PIECE = 2048  # tokens of each window that are on the devices at once
STRETCHES = 256  # positions of the longest window are told apart in so many equal parts at most


@dataclasses.dataclass(frozen=True, repr=False)
class Curve:
    """One context length.

    Attributes:
        context: tokens that are read before the states are dropped.
        nats, tokens: float64 and int64 [W, S], sums over W windows in S stretches each. Windows are
            those of the longest context for all curves, so that an entry of two curves is over the
            same tokens, whatever their contexts.
        longest: tokens of those windows.
    """

    context: int
    nats: np.ndarray
    tokens: np.ndarray
    longest: int

    def __repr__(self) -> str:
        return f"Curve({self.context:,} tokens: perplexity {self.perplexity:.3f})"

    @property
    def perplexity(self) -> float:
        """Over all positions."""
        return math.exp(min(700.0, self.nats.sum() / self.tokens.sum()))

    def values(self) -> dict[str, Any]:
        """The numbers for JSON; positions are those of the longest context's windows."""
        return {
            "context": self.context,
            "perplexity": self.perplexity,
            "nats": float(self.nats.sum()),
            "tokens": int(self.tokens.sum()),
            "positions": (np.arange(1, self.nats.shape[1] + 1) * self.stretch).tolist(),
            "position_nats": self.nats.sum(axis=0).tolist(),
            "position_tokens": self.tokens.sum(axis=0).tolist(),
        }

    @property
    def stretch(self) -> int:
        """Positions in one stretch."""
        return self.longest // self.nats.shape[1]


@dataclasses.dataclass(frozen=True)
class Gain:
    """What more context brings to the tokens at some positions of the longest windows.

    Attributes:
        first, last: positions, counted from 1.
        nats: loss per token minus that of the same tokens with the shorter context; below 0 where
            the longer one helps.
        error: standard error of `nats` over the windows; None with fewer than three of them.
    """

    first: int
    last: int
    nats: float
    error: float | None


def gains(long: Curve, short: Curve) -> list[Gain]:
    """The difference of two curves by position. The text is the same, so that hard and easy
    passages cancel out.

    Positions are grouped by whole windows of the shorter context (the first one, the second, the
    third, then ever more of them at once): just behind a border the shorter context knows nothing,
    so that half a window would not compare with a whole one.
    """
    stretches = long.nats.shape[1]
    window = max(1, short.context * stretches // long.longest)  # in stretches
    borders = [0]
    while borders[-1] < stretches:
        whole_windows = 1 << max(0, (borders[-1] // window).bit_length() - 2)
        borders.append(min(stretches, borders[-1] + whole_windows * window))
    result = []
    for first, after in zip(borders, borders[1:], strict=False):
        cut = slice(first, after)
        tokens = long.tokens[:, cut].sum(axis=1)
        counted = tokens > 0
        if not counted.any():
            continue
        tokens = tokens[counted]
        difference = (long.nats[:, cut] - short.nats[:, cut]).sum(axis=1)[counted]
        mean, windows = difference.sum() / tokens.sum(), len(tokens)
        error = None
        if windows >= 3:
            spread = np.sum((difference - mean * tokens) ** 2) * windows / (windows - 1)
            error = float(np.sqrt(spread) / tokens.sum())
        result.append(Gain(first * long.stretch + 1, after * long.stretch, float(mean), error))
    return result


def default_contexts(base: int, targets: int) -> tuple[int, ...]:
    """`base` times 1, 2, 4, ..., as far as `targets` tokens fill a window."""
    contexts = [base << doubling for doubling in range(DOUBLINGS)]
    return tuple(context for context in contexts if context <= targets) or (base,)


def with_trained(contexts: tuple[int, ...], trained_at: int | None) -> tuple[int, ...]:
    """The contexts, sorted, and among them the one of training where it divides the longest one."""
    wanted = set(contexts)
    if trained_at is not None and max(wanted) % trained_at == 0:
        wanted.add(trained_at)
    return tuple(sorted(wanted))


def check_contexts(contexts: tuple[int, ...]) -> None:
    """Raises `UserError` where contexts could not share their tokens: one does not divide the
    longest one.
    """
    longest = max(contexts)
    if bad := [context for context in contexts if context < 1 or longest % context]:
        raise UserError(
            f"context lengths {bad} do not divide the longest one, {longest}; all lengths must "
            f"share their tokens"
        )


def shared_targets(source: TokenSource, contexts: tuple[int, ...], max_tokens: int | None) -> int:
    """How many tokens all contexts are scored on: what whole windows of the longest one have.

    Raises:
        UserError: a context does not divide the longest one, or there is not one window of it.
    """
    check_contexts(contexts)
    longest, targets = max(contexts), target_count(source, max_tokens)
    if targets < longest:
        raise UserError(
            f"{targets:,} tokens are less than one window of {longest:,}; give shorter contexts, "
            f"more tokens, or more text"
        )
    return targets // longest * longest


def extrapolate(
    model: nn.Module,
    params: Any,
    source: TokenSource,
    contexts: tuple[int, ...],
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    reset_at_document: bool = False,
    max_tokens: int | None = None,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> list[Curve]:
    """A curve per context length, over the same tokens: as many as whole windows of the longest
    context have.

    Windows are cut into pieces whose states are carried on, so that memory does not depend on the
    context. `on_tokens` is called with the number of tokens of each piece when it is scored.

    Raises:
        UserError: the source is shorter than one window, or a context does not divide the longest
            one.
    """
    targets = shared_targets(source, contexts, max_tokens)
    place = functools.partial(jax.device_put, device=batch_sharding(mesh, batch_size))
    longest = max(contexts)
    stretches = math.gcd(longest, STRETCHES)
    shape = (targets // longest, stretches)
    curves = []
    for context in sorted(set(contexts)):
        nats, counts = np.zeros(targets // longest * stretches), np.zeros(shape, np.int64).ravel()
        first_row = 0  # window of this context with which the batch begins
        for batch in eval_batches(
            source, batch_size, context, targets, reset_at_document=reset_at_document
        ):
            starts = (first_row + np.arange(batch_size)) * context
            dtype = compute_dtype(model.config.dtype)
            state = model.init_state(batch_size, dtype, cache_length=context)
            for start in range(0, context, PIECE):
                part = Batch(*(x[:, start : start + PIECE] for x in batch))
                state, losses = _score_piece(
                    model,
                    params,
                    state,
                    Batch(*map(place, part)),
                    reset_at_document=reset_at_document,
                )
                places = starts[:, None] + start + np.arange(losses.shape[1])
                counted = part.mask
                index = places[counted] * stretches // longest
                np.add.at(nats, index, np.asarray(losses, np.float64)[counted])
                np.add.at(counts, index, 1)
                on_tokens(int(np.sum(part.segment_ids >= 0)))
            first_row += batch_size
        curves.append(Curve(context, nats.reshape(shape), counts.reshape(shape), longest))
    return curves


@functools.partial(jax.jit, static_argnames=("model", "reset_at_document"))
def _score_piece(
    model: nn.Module, params: Any, state: Any, batch: Batch, *, reset_at_document: bool
) -> tuple[Any, Float[Array, "B T"]]:
    """The state after a piece, and the loss of each of its tokens in nats."""
    segment_ids = batch.segment_ids if reset_at_document else None
    hidden, state = model.apply(
        {"params": params}, batch.tokens, state, segments=segment_ids, method="hidden"
    )
    logs, _ = token_scores(model, params, hidden, batch.targets)
    return state, -logs
