"""Loss, perplexity and bits per byte of a model over a stream of batches, every token scored once."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax

from xlstm_jax.data.loader import Batch
from xlstm_jax.training.step import count_tokens, loss_sum

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The result of an evaluation."""

    nats: float  # summed over all tokens
    tokens: int
    text_bytes: int | None = None  # of the text that the tokens came from, where it is known

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.loss, 700.0))  # a float64 ends at exp(709)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None


def make_eval_step(model: nn.Module, reset_at_document: bool) -> EvalStep:
    """The jitted step: parameters and batch to the summed loss in nats and the number of tokens, both on the device."""

    @jax.jit
    def eval_step(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return loss_sum(model, params, batch, reset_at_document=reset_at_document), count_tokens(batch.mask)

    return eval_step


def evaluate(eval_step: EvalStep, params: Any, batches: Iterable[Batch], text_bytes: int | None = None) -> Perplexity:
    """Scores all batches. Sums over batches are float64 on the host, read one batch late so that the device never waits."""
    nats, tokens, pending = 0.0, 0, None
    for batch in batches:
        dispatched = eval_step(params, batch)
        if pending is not None:
            nats, tokens = nats + float(pending[0]), tokens + int(pending[1])
        pending = dispatched
    if pending is not None:
        nats, tokens = nats + float(pending[0]), tokens + int(pending[1])
    if not tokens:
        raise ValueError("an evaluation needs at least one token")
    return Perplexity(nats, tokens, text_bytes)
