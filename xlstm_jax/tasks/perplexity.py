"""Perplexity and bits per byte of a text, every token scored once.

What stands beside the loss (bytes, bits per byte, gzip) is taken over the text of the same tokens.
"""

import dataclasses
import math

import numpy as np

from xlstm_jax.data.loader import TokenSource
from xlstm_jax.data.tokenizer import ByteTokenizer, Tokenizer
from xlstm_jax.errors import UserError

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
        """exp of the loss."""
        return math.exp(min(self.loss, 700.0))  # a float64 ends at exp(709)

    @property
    def bits_per_byte(self) -> float | None:
        """The loss over the bytes of the text, which compares between tokenizers."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def line(self, gzip_bits_per_byte: float | None = None) -> str:
        """The line for the terminal: "loss 1.301 nats, 1.877 bits per byte (gzip -9: 2.08)"; the
        perplexity where bytes are unknown.
        """
        if self.bits_per_byte is None:
            return f"loss {self.loss:.3f} nats, perplexity {self.perplexity:.2f}"
        gzip_part = "" if gzip_bits_per_byte is None else f" (gzip -9: {gzip_bits_per_byte:.2f})"
        return f"loss {self.loss:.3f} nats, {self.bits_per_byte:.3f} bits per byte{gzip_part}"

    def values(self) -> dict[str, float | int | None]:
        """The numbers for metrics.jsonl."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
        }


NOTHING_TO_SCORE = (
    "there is no token to score: with data.reset_at_document the first token of a document does "
    "not count, since nothing is known before it; raise eval.max_tokens (--max_tokens), or give "
    "longer documents"
)


def check_scored(source: TokenSource, max_tokens: int | None) -> None:
    """Refuses at the start what would end an evaluation with `data.reset_at_document` without one
    token that counts.

    Raises:
        UserError: the first `max_tokens`, or the whole text, are first tokens of documents only.
    """
    targets = target_count(source, max_tokens)
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
    # Each of its tokens is a byte of the text. Decoding them would count too many: a byte that is
    # half a character becomes U+FFFD, which has three bytes.
    if isinstance(tokenizer, ByteTokenizer):
        return len(tokens)
    return len(tokenizer.decode(tokens).encode())
