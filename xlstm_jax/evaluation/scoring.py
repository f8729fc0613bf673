"""Log-probabilities of given continuations, for downstream tasks and PALOMA."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.session import Session
from xlstm_jax.typing import Array, Bool, Float, Int

HEAD_TOKENS = 128  # logits of so many tokens per row exist at once


class Score(NamedTuple):
    """What a continuation gets: the natural logarithm of its probability, and whether each token
    was the most likely one.
    """

    log_probability: float
    is_greedy: bool


Pair = tuple[Sequence[int], Sequence[int]]  # context (at least one token) and continuation


class Scorer:
    """Scores (context, continuation) pairs. Each different context is read once, however many
    continuations it has.

    Args:
        batch_size: rows at once; spread over all devices that `place` names.
        place: puts an array with rows onto the devices.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        batch_size: int = 16,
        place: Callable[[Any], Any] = lambda rows: rows,
    ):
        self.model, self.params, self.batch_size, self._place = model, params, batch_size, place

    def score(
        self, pairs: Sequence[Pair], on_scored: Callable[[int], object] = lambda count: None
    ) -> list[Score]:
        """A score for each pair, in their order. Contexts and continuations are batched by length
        and padded to few lengths: few programs. `on_scored` is called with the number of pairs of
        each batch.

        Raises:
            UserError: a pair has more tokens than the model has learned positions.
        """
        config = self.model.config
        most = max((len(context) + len(rest) for context, rest in pairs), default=0)
        sessions.check_room(config, [0], [sessions.room_of(config, None)], [most])
        by_context: dict[tuple[int, ...], list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            by_context.setdefault(tuple(int(token) for token in context), []).append(number)
        if () in by_context:
            raise ValueError("a context needs at least one token")
        longest_first = sorted(by_context, key=len, reverse=True)
        scores: dict[int, Score] = {}
        for start in range(0, len(longest_first), self.batch_size):
            contexts = longest_first[start : start + self.batch_size]
            filled = contexts + [contexts[-1][-1:]] * (self.batch_size - len(contexts))
            wanted = [
                (row, number)
                for row, context in enumerate(contexts)
                for number in by_context[context]
            ]
            wanted.sort(key=lambda entry: -len(pairs[entry[1]][1]))
            # Room for the longest of both, each filled up as it will be: few lengths of caches too.
            longest = (len(contexts[0]), len(pairs[wanted[0][1]][1]))
            room = sum(map(sessions.padded, longest))
            session = sessions.read(
                self.model, self.params, filled, cache_length=room, place=self._place
            )
            for first in range(0, len(wanted), self.batch_size):
                part = wanted[first : first + self.batch_size]
                rows = [row for row, _ in part] + [0] * (self.batch_size - len(part))
                results = self._continuations(
                    session, rows, [pairs[number][1] for _, number in part]
                )
                scores.update(
                    {number: result for (_, number), result in zip(part, results, strict=True)}
                )
                on_scored(len(part))
        return [scores[number] for number in range(len(pairs))]

    def _continuations(
        self, session: Session, rows: list[int], continuations: list[Sequence[int]]
    ) -> list[Score]:
        """Piece by piece, right-padded: what stands behind a continuation can't reach it."""
        if rows != list(range(len(session.position))):
            session = sessions.take(session, rows)
        length = sessions.padded(max(1, *map(len, continuations)))
        tokens = np.zeros((len(rows), length), np.int32)
        mask = np.zeros((len(rows), length), bool)
        for row, continuation in enumerate(continuations):
            tokens[row, : len(continuation)], mask[row, : len(continuation)] = continuation, True
        state, logits, totals, greedy = session.state, session.logits, 0.0, True
        for start in range(0, length, sessions.PIECE):
            piece = (
                tokens[:, start : start + sessions.PIECE],
                mask[:, start : start + sessions.PIECE],
            )
            state, logits, total, all_greedy = score_piece(
                self.model, self.params, state, logits, *map(self._place, piece)
            )
            totals, greedy = totals + np.asarray(total, np.float64), greedy & np.asarray(all_greedy)
        return [Score(float(totals[row]), bool(greedy[row])) for row in range(len(continuations))]


@functools.partial(jax.jit, static_argnames="model")
def score_piece(
    model: nn.Module,
    params: Any,
    state: Any,
    logits: Float[Array, "B E"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> tuple[Any, Float[Array, "B E"], Float[Array, " B"], Bool[Array, " B"]]:
    """(state and logits after the piece, summed log-probability and all-greedy over the masked
    tokens), `logits` foretelling the first.
    """
    # There may be no position left for what stands behind a continuation.
    segments = None if model.config.max_positions is None else jnp.where(mask, 0, -1)
    hidden, state = model.apply(
        {"params": params}, tokens, state, segments=segments, method="hidden"
    )
    first_log, first_greedy = _of_logits(logits[:, None], tokens[:, :1])
    if tokens.shape[1] > 1:
        rest_log, rest_greedy = token_scores(model, params, hidden[:, :-1], tokens[:, 1:])
        logs = jnp.concatenate([first_log, rest_log], axis=1)
        greedy = jnp.concatenate([first_greedy, rest_greedy], axis=1)
    else:
        logs, greedy = first_log, first_greedy
    logits = model.apply({"params": params}, hidden[:, -1:], method="head")[:, -1].astype(
        jnp.float32
    )
    return state, logits, jnp.sum(jnp.where(mask, logs, 0), axis=1), jnp.all(greedy | ~mask, axis=1)


def token_scores(
    model: nn.Module, params: Any, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """float32 log-probability of every target, and whether it is the most likely one; logits exist
    for `HEAD_TOKENS` tokens at a time.
    """
    batch, time = targets.shape
    missing = -time % HEAD_TOKENS if time > HEAD_TOKENS else 0
    hidden, targets = (
        jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2))) for x in (hidden, targets)
    )
    pieces = [
        x.reshape(batch, -1, min(HEAD_TOKENS, time), *x.shape[2:]).swapaxes(0, 1)
        for x in (hidden, targets)
    ]

    def score(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        return _of_logits(model.apply({"params": params}, piece[0], method="head"), piece[1])

    logs, greedy = jax.lax.map(score, tuple(pieces))
    return tuple(x.swapaxes(0, 1).reshape(batch, -1)[:, :time] for x in (logs, greedy))


def _of_logits(
    logits: Float[Array, "B T E"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == targets
