"""Loss, perplexity and bits per byte of a model over a stream of batches, every token scored once.

What stands beside the loss (bytes, bits per byte, gzip) is taken over the text of the same tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from xlstm_jax.config import Config
from xlstm_jax.data.loader import Batch, TokenSource, eval_batches
from xlstm_jax.data.tokenizer import ByteTokenizer, Tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import batch_sharding, filled_rows, put_batch
from xlstm_jax.training.step import count_tokens, loss_sum

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
READ_AT_ONCE = 1 << 20  # tokens, when a stream is looked through on the host


@dataclasses.dataclass(frozen=True, repr=False)
class Perplexity:
    """The result of an evaluation.

    Attributes:
        nats: summed over all tokens.
        tokens: those that were scored.
        text_bytes: of their text, where it is known.
        context_length: tokens of the windows that they were scored in.
    """

    nats: float
    tokens: int
    text_bytes: int | None = None
    context_length: int | None = None

    def __repr__(self) -> str:
        """What a notebook shows: the numbers that people read, not the sums."""
        windows = f" in windows of {self.context_length:,}" if self.context_length else ""
        perplexity = "" if self.bits_per_byte is None else f", perplexity {self.perplexity:.3f}"
        return f"Perplexity({self.line()}{perplexity}; {self.tokens:,} tokens{windows})"

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
    eval_step: EvalStep,
    params: Any,
    batches: Iterable[Batch],
    text_bytes: int | None = None,
    context_length: int | None = None,
) -> Perplexity:
    """Scores all batches. Sums over batches are float64 on the host, read one batch late so that
    the device never waits.

    Raises:
        UserError: not one token counts.
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
        raise UserError(NOTHING_TO_SCORE)
    return Perplexity(nats, tokens, text_bytes, context_length)


def perplexity_of(
    eval_step: EvalStep,
    params: Any,
    source: TokenSource,
    *,
    config: Config,
    mesh: jax.sharding.Mesh,
    on_tokens: Callable[[int], object] | None = None,
) -> Perplexity:
    """The evaluation that the configuration asks for: its windows, its first tokens or all; at
    least a row for each device.

    Args:
        on_tokens: called with the number of tokens of each batch when it is dispatched.

    Raises:
        UserError: not one token counts.
    """
    context_length = scored_context(config)
    rows = filled_rows(mesh, config.eval.batch_size)
    reset = config.data.reset_at_document
    batches = eval_batches(
        source, rows, context_length, config.eval.max_tokens, reset_at_document=reset
    )
    to_devices = batch_sharding(mesh, rows, context_length)

    def on_devices() -> Iterable[Batch]:
        for batch in batches:
            yield put_batch(batch, to_devices)
            if on_tokens is not None:
                on_tokens(int(np.sum(batch.segment_ids >= 0)))

    text_bytes = scored_bytes(source, config.eval.max_tokens, reset_at_document=reset)
    return evaluate(eval_step, params, on_devices(), text_bytes, context_length)


def scored_context(config: Config) -> int:
    """Tokens of the windows that a configuration is evaluated in: eval.context_length, or that of
    training.
    """
    return config.eval.context_length or config.data.context_length


NOTHING_TO_SCORE = (
    "there is no token to score: with data.reset_at_document the first token of a document does "
    "not count, since nothing is known before it; raise eval.max_tokens (--max_tokens), or give "
    "longer documents"
)


def check_scored(source: TokenSource, config: Config) -> None:
    """Refuses at the start what would end an evaluation without one token that counts.

    Raises:
        UserError: eval.max_tokens, or the whole text, holds first tokens of documents only, and
            data.reset_at_document keeps these from counting.
    """
    if not config.data.reset_at_document:
        return
    targets = target_count(source, config.eval.max_tokens)
    for start in range(0, targets, READ_AT_ONCE):
        inputs = np.asarray(source.tokens[start : min(start + READ_AT_ONCE, targets)])
        if (inputs != source.end_of_text).any():
            return
    raise UserError(NOTHING_TO_SCORE)


def target_count(source: TokenSource, max_tokens: int | None) -> int:
    """How many tokens of a stream are targets: all but the first one, at most `max_tokens`."""
    count = len(source.tokens) - 1
    return count if max_tokens is None else min(count, max_tokens)


def scored_bytes(
    source: TokenSource, max_tokens: int | None, *, reset_at_document: bool = False
) -> int:
    """Bytes of text behind the tokens that are scored, to within one character; 0 where there is no
    text.

    These are the first `max_tokens` targets; with `reset_at_document` without the first token of
    each document.
    """
    if not source.bytes:
        return 0
    count = target_count(source, max_tokens)
    all_of_it = count == len(source.tokens) - 1
    total = source.bytes if all_of_it else 0  # the manifest knows it: no need to read billions
    if all_of_it and not reset_at_document:
        return total
    for start in range(0, count, READ_AT_ONCE):
        tokens = np.asarray(source.tokens[start : min(start + READ_AT_ONCE, count) + 1])
        targets = tokens[1:]
        is_text = targets != source.end_of_text
        is_first = tokens[:-1] == source.end_of_text
        if all_of_it:
            total -= _bytes_of(source.tokenizer, targets[is_text & is_first])
        else:
            counts = is_text & ~is_first if reset_at_document else is_text
            total += _bytes_of(source.tokenizer, targets[counts])
    return total


def gzip_bits_per_byte(source: TokenSource, max_tokens: int | None) -> float | None:
    """Size of the scored text after `gzip -9`, in bits per byte; None where it is not at hand.

    The text is that of the first `max_tokens` targets, so that the number can stand beside a
    model's over these.
    """
    text_bytes = scored_bytes(source, max_tokens)
    return source.gzip_bits_per_byte(text_bytes) if text_bytes else None


def _bytes_of(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    # A byte is a byte, also where it is half a character, which decoding would make three of.
    if isinstance(tokenizer, ByteTokenizer):
        return len(tokens)
    return len(tokenizer.decode(tokens).encode())
