"""Perplexity of rare and of common tokens: by how often the training data have them (2405.04517,
figure 2, right).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.data.loader import Batch, TokenSource
from xlstm_jax.evaluation.scoring import token_scores
from xlstm_jax.tasks.evaluation import evaluate
from xlstm_jax.tasks.perplexity import READ_AT_ONCE
from xlstm_jax.tasks.task import HeldOut, Sums
from xlstm_jax.typing import Int

EDGES = (10**2, 10**3, 10**4, 10**5, 10**6)  # occurrences in training; the paper gives none
ALL = "loss"


class Bin(NamedTuple):
    """Tokens of similar frequency.

    Attributes:
        least, below: occurrences in training; `below` is None for the last bin.
        kinds: how many of the vocabulary's tokens are in the bin.
        tokens, nats: the scored tokens that are among them, and the sum of their losses.
    """

    least: int
    below: int | None
    kinds: int
    tokens: int
    nats: float

    @property
    def name(self) -> str:
        """The bin as a person reads it."""
        if self.below is None:
            return f"{self.least:,} or more"
        return f"{self.least:,} to {self.below - 1:,}"

    @property
    def perplexity(self) -> float | None:
        """None where nothing was scored."""
        return math.exp(min(700.0, self.nats / self.tokens)) if self.tokens else None


def occurrences(source: TokenSource, vocab_size: int) -> Int[np.ndarray, " E"]:
    """How often each token is in a stream; it is read in pieces."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(source.tokens), READ_AT_ONCE):
        piece = np.asarray(source.tokens[start : start + READ_AT_ONCE])
        counts += np.bincount(piece, minlength=vocab_size)
    return counts


def by_frequency(
    model: nn.Module,
    params: Any,
    held_out: HeldOut,
    counts: Int[np.ndarray, " E"],
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    reset_at_document: bool = False,
    on_batch: Callable[[Batch], object] = lambda batch: None,
) -> list[Bin]:
    """The scored tokens of each bin, and their losses; every token is in one of them.

    Args:
        counts: occurrences of each token of the vocabulary in training.
    """
    bins = len(EDGES) + 1
    bin_of = np.searchsorted(EDGES, counts, side="right")

    def sums(params: Any, batch: Batch) -> Sums:
        segments = batch.segment_ids if reset_at_document else None
        y, _ = model.apply({"params": params}, batch.tokens, segments=segments, method="hidden")
        logs, _ = token_scores(model, params, y, jnp.maximum(batch.targets, 0))
        place = jnp.asarray(bin_of)[jnp.maximum(batch.targets, 0)]
        found = {}
        for number in range(bins):
            counted = batch.mask.astype(bool) & (place == number)
            nats = -jnp.sum(jnp.where(counted, logs, 0))
            found[str(number)] = (nats, jnp.sum(counted, dtype=jnp.float32))
        found[ALL] = tuple(sum(parts) for parts in zip(*found.values(), strict=True))
        return found

    totals = evaluate(jax.jit(sums), params, held_out, batch_size, mesh, on_batch)
    borders = [0, *EDGES, None]
    return [
        Bin(
            borders[number],
            borders[number + 1],
            int(np.sum(bin_of == number)),
            round(totals[str(number)][1]),
            totals[str(number)][0],
        )
        for number in range(bins)
    ]
