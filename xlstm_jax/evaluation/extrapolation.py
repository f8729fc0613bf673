"""Perplexity at contexts longer than those of training: the same tokens for every length, in
constant memory.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.data.loader import Batch, TokenSource, eval_batches
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.scoring import token_scores
from xlstm_jax.parallel import batch_sharding
from xlstm_jax.typing import Array, Float, Int

CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536)
PIECE = 2048  # tokens of each window that are on the devices at once
BUCKETS_PER_PIECE = 8


@dataclasses.dataclass(frozen=True)
class Curve:
    """One context length.

    Attributes:
        nats, tokens: summed over all windows.
        position_nats, position_tokens: the same by position in the window, in `BUCKETS_PER_PIECE`
            equal stretches of each piece.
    """

    context: int
    nats: float
    tokens: int
    position_nats: list[float]
    position_tokens: list[int]

    @property
    def perplexity(self) -> float:
        """Over all positions."""
        return math.exp(self.nats / self.tokens)

    def by_position(self) -> list[tuple[int, float]]:
        """(first position behind a stretch, perplexity in it)."""
        width = self.context // len(self.position_nats)
        pairs = enumerate(zip(self.position_nats, self.position_tokens, strict=True), 1)
        return [
            (number * width, math.exp(nats / tokens)) for number, (nats, tokens) in pairs if tokens
        ]


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
) -> list[Curve]:
    """A curve per context length, over the same tokens: as many as whole windows of the longest
    context have.

    Windows are cut into pieces whose states are carried on, so that memory does not depend on the
    context.

    Raises:
        UserError: the source is shorter than one window, or a context does not divide the longest
            one.
    """
    longest = max(contexts)
    if bad := [context for context in contexts if context < 1 or longest % context]:
        raise UserError(
            f"context lengths {bad} do not divide the longest one, {longest}; all lengths must "
            f"share their tokens"
        )
    targets = (
        len(source.tokens) - 1 if max_tokens is None else min(len(source.tokens) - 1, max_tokens)
    )
    windows = targets // longest
    if not windows:
        raise UserError(
            f"{targets:,} tokens are less than one window of {longest:,}; give shorter contexts, "
            f"more tokens, or more text"
        )
    return [
        _curve(
            model, params, source, context, windows * longest, batch_size, mesh, reset_at_document
        )
        for context in sorted(contexts)
    ]


def _curve(
    model: nn.Module,
    params: Any,
    source: TokenSource,
    context: int,
    targets: int,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    reset_at_document: bool,
) -> Curve:
    place = functools.partial(jax.device_put, device=batch_sharding(mesh, batch_size))
    piece = math.gcd(context, PIECE)
    buckets = math.gcd(piece, BUCKETS_PER_PIECE)
    nats, counts = (
        np.zeros((context // piece, buckets)),
        np.zeros((context // piece, buckets), np.int64),
    )
    for batch in eval_batches(
        source, batch_size, context, targets, reset_at_document=reset_at_document
    ):
        state = model.init_state(batch_size)
        for number in range(context // piece):
            cut = slice(number * piece, (number + 1) * piece)
            part = Batch(*(place(x[:, cut]) for x in batch))
            state, sums, tokens_counted = _score_piece(
                model, params, state, part, reset_at_document=reset_at_document, buckets=buckets
            )
            nats[number] += np.asarray(sums, np.float64)
            counts[number] += np.asarray(tokens_counted)
    return Curve(
        context,
        float(nats.sum()),
        int(counts.sum()),
        nats.ravel().tolist(),
        counts.ravel().tolist(),
    )


@functools.partial(jax.jit, static_argnames=("model", "reset_at_document", "buckets"))
def _score_piece(
    model: nn.Module,
    params: Any,
    state: Any,
    batch: Batch,
    *,
    reset_at_document: bool,
    buckets: int,
) -> tuple[Any, Float[Array, " buckets"], Int[Array, " buckets"]]:
    """The state after a piece, its summed nats and counted tokens by stretch of positions."""
    segment_ids = batch.segment_ids if reset_at_document else None
    hidden, state = model.apply(
        {"params": params}, batch.tokens, state, segment_ids=segment_ids, method="hidden"
    )
    logs, _ = token_scores(model, params, hidden, batch.targets)
    by_position = (
        jnp.sum(jnp.where(batch.mask, -logs, 0), axis=0),
        jnp.sum(batch.mask, axis=0, dtype=jnp.int32),
    )
    return (state, *(x.reshape(buckets, -1).sum(axis=1) for x in by_position))
