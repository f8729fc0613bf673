"""Loss, perplexity and bits per byte of a model over a stream of batches, every token scored once."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from xlstm_jax.config import Config
from xlstm_jax.data.loader import Batch, TokenSource, eval_batches
from xlstm_jax.parallel import batch_sharding, filled_rows, put_batch
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

    def line(self, gzip_bits_per_byte: float | None = None) -> str:
        """For the terminal: "loss 1.301 nats, 1.877 bits per byte (gzip -9: 2.08)"; the perplexity
        where bytes are unknown.
        """
        if self.bits_per_byte is None:
            return f"loss {self.loss:.3f} nats, perplexity {self.perplexity:.2f}"
        gzip_part = "" if gzip_bits_per_byte is None else f" (gzip -9: {gzip_bits_per_byte:.2f})"
        return f"loss {self.loss:.3f} nats, {self.bits_per_byte:.3f} bits per byte{gzip_part}"

    def values(self) -> dict[str, float | int | None]:
        """For metrics.jsonl."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
        }


def make_eval_step(model: nn.Module, reset_at_document: bool) -> EvalStep:
    """The jitted step: parameters and batch to the summed loss in nats and the number of tokens,
    both on the device.
    """

    @jax.jit
    def eval_step(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return loss_sum(model, params, batch, reset_at_document=reset_at_document), count_tokens(
            batch.mask
        )

    return eval_step


def evaluate(
    eval_step: EvalStep, params: Any, batches: Iterable[Batch], text_bytes: int | None = None
) -> Perplexity:
    """Scores all batches. Sums over batches are float64 on the host, read one batch late so that
    the device never waits.
    """
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


def perplexity_of(
    eval_step: EvalStep,
    params: Any,
    source: TokenSource,
    *,
    config: Config,
    mesh: jax.sharding.Mesh,
) -> Perplexity:
    """The evaluation that the configuration asks for: its windows, its first tokens or all; at
    least a row for each device.
    """
    context_length = config.eval.context_length or config.data.context_length
    rows = filled_rows(mesh, config.eval.batch_size)
    batches = eval_batches(
        source,
        rows,
        context_length,
        config.eval.max_tokens,
        reset_at_document=config.data.reset_at_document,
    )
    to_devices = batch_sharding(mesh, rows, context_length)
    on_devices = (put_batch(batch, to_devices) for batch in batches)
    return evaluate(eval_step, params, on_devices, scored_bytes(source, config.eval.max_tokens))


def scored_bytes(source: TokenSource, max_tokens: int | None) -> int:
    """Bytes of text behind the first `max_tokens` targets, to within one character; of all
    documents where that is all.
    """
    if max_tokens is None or max_tokens >= len(source.tokens) - 1:
        return source.bytes
    targets = np.asarray(source.tokens[1 : max_tokens + 1])
    return len(source.tokenizer.decode(targets[targets != source.end_of_text]).encode())
