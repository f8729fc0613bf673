"""Token streams cut into samples and batches.

Sample i of training is a pure function of (stream, seed, context length, i): an epoch is a permutation of the stream's
non-overlapping windows, and epoch after epoch follows with a new one. Resuming at a step needs the step alone.
"""

import dataclasses
import gzip
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int

from xlstm_jax.config import DataConfig
from xlstm_jax.data import corpus, shards
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.errors import UserError

READ_AHEAD = 8  # batches, by threads
EPOCHS = 1 << 20  # as good as without end; grain's infinite datasets overflow in len()


class Batch(NamedTuple):
    """Inputs and what follows them. Padding has segment id -1 and does not count."""

    tokens: Int[np.ndarray, "B T"]  # int32
    targets: Int[np.ndarray, "B T"]  # int32, the next token
    mask: Bool[np.ndarray, "B T"]  # whether the target counts
    segment_ids: Int[np.ndarray, "B T"]  # int32, number of the document within the sample


@dataclasses.dataclass(frozen=True)
class TokenSource:
    """The token stream of a split: an end-of-text token, then documents, each followed by one.

    Attributes:
        tokens: anything with a length and slices: an array, or `ShardedTokens`.
        bytes: of the documents as UTF-8.
        text: those bytes, where they are at hand.
        description: lines for the terminal.
    """

    tokens: Any
    tokenizer: Tokenizer
    documents: int
    bytes: int
    text: bytes | None
    description: tuple[str, ...]

    @property
    def end_of_text(self) -> int:
        """Id of the token between documents."""
        return self.tokenizer.end_of_text

    def gzip_bits_per_byte(self) -> float | None:
        """Size of the documents after `gzip -9`, bits per byte; None where the text is not at hand."""
        return None if self.text is None else 8 * len(gzip.compress(self.text, 9)) / len(self.text)


def open_split(config: DataConfig, split: str, vocab_size: int) -> TokenSource:
    """The tokens of "train" or "validation".

    Text is tokenized in memory; a folder with manifests is memory-mapped. `vocab_size` is the model's.

    Raises:
        UserError: data or tokenizer are missing, empty, no text, damaged, or have ids that the model lacks.
    """
    path = config.validation_path if split == "validation" and config.validation_path else config.path
    if shards.is_prepared(path):
        source = _open_prepared(config, path, split)
    else:
        documents = corpus.read_corpus(path)
        tokenizer = load_tokenizer(config.tokenizer)
        if not config.validation_path:
            documents = corpus.split_corpus(documents, split, config.holdout_every)
            if not documents:
                raise UserError(f"data path {path!r} has too little text to hold one part in {config.holdout_every} out for {split}")
        source = _tokenize(path, split, documents, tokenizer)
    if source.tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {source.tokenizer.name!r} has {source.tokenizer.vocab_size} ids, but model.vocab_size is {vocab_size}; "
            "enlarge model.vocab_size to at least that"
        )
    return source


def train_batches(source: TokenSource, config: DataConfig, start_step: int = 0) -> Iterator[Batch]:
    """Batches for the steps after `start_step`, for more epochs than anybody trains.

    Raises:
        UserError: the stream is shorter than one sample.
    """
    windows = (len(source.tokens) - 1) // config.context_length
    if not windows:
        raise UserError(
            f"data path {config.path!r} has {len(source.tokens)} tokens, less than one sample of data.context_length "
            f"{config.context_length} + 1; give more text or shorten it"
        )
    dataset = (
        grain.MapDataset.source(_Windows(source, config.context_length, config.reset_at_document))
        .seed(config.seed)
        .shuffle()
        .repeat(EPOCHS)
        .slice(slice(start_step * config.batch_size, None))
        .batch(config.batch_size)
    )
    read_options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    dataset = dataset.to_iter_dataset(read_options)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # in a notebook or a test; grain's worker processes read absl's flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return iter(dataset)


def eval_batches(
    source: TokenSource,
    batch_size: int,
    context_length: int,
    max_tokens: int | None = None,
    *,
    reset_at_document: bool = False,
) -> Iterator[Batch]:
    """The stream in order, every token after the first one a target exactly once; the end is padded to whole batches.

    `max_tokens` ends it after that many targets.
    """
    targets = len(source.tokens) - 1
    targets = targets if max_tokens is None else min(targets, max_tokens)
    windows = -(-targets // context_length)
    for first in range(0, windows, batch_size):
        rows = [
            make_sample(
                source.tokens[start : min(start + context_length, targets) + 1],
                context_length,
                source.end_of_text,
                reset_at_document,
            )
            for start in range(first * context_length, min(first + batch_size, windows) * context_length, context_length)
        ]
        empty = make_sample(np.zeros(1, np.int32), context_length, source.end_of_text, reset_at_document)
        rows += [empty] * (batch_size - len(rows))
        yield Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


def make_sample(stream: Int[np.ndarray, " n"], context_length: int, end_of_text: int, reset_at_document: bool) -> Batch:
    """One row (without B) from up to `context_length` + 1 neighbouring tokens; what is missing becomes padding.

    An end-of-text token is the last of its document. With `reset_at_document` nothing is known when a document's first token is to be
    predicted, so that it does not count.
    """
    stream = np.asarray(stream).astype(np.int32)
    tokens, targets = stream[:-1], stream[1:]
    ends = tokens == end_of_text
    segment_ids = np.cumsum(ends, dtype=np.int32) - ends
    mask = ~ends if reset_at_document else np.ones(len(tokens), bool)
    if (missing := context_length - len(tokens)) > 0:
        tokens, targets = (np.pad(row, (0, missing), constant_values=end_of_text) for row in (tokens, targets))
        segment_ids, mask = np.pad(segment_ids, (0, missing), constant_values=-1), np.pad(mask, (0, missing))
    return Batch(tokens, targets, mask, segment_ids)


class _Windows:
    """The non-overlapping training samples of a stream, as a random-access source for grain."""

    def __init__(self, source: TokenSource, context_length: int, reset_at_document: bool):
        self._tokens, self._end_of_text = source.tokens, source.end_of_text
        self._context_length, self._reset_at_document = context_length, reset_at_document

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context_length

    def __getitem__(self, index: int) -> Batch:
        start = index * self._context_length
        stream = self._tokens[start : start + self._context_length + 1]
        return make_sample(stream, self._context_length, self._end_of_text, self._reset_at_document)


def _tokenize(path: str, split: str, documents: list[corpus.Document], tokenizer: Tokenizer) -> TokenSource:
    end = np.array([tokenizer.end_of_text])
    parts = [end]
    for document in documents:
        parts += [tokenizer.encode(document.text), end]
    text = b"".join(document.text.encode() for document in documents)
    tokens = np.concatenate(parts).astype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    description = f"{split}: {corpus.describe(path, documents, len(text))}, {len(tokens):,} tokens"
    return TokenSource(tokens, tokenizer, len(documents), len(text), text, (description,))


def _open_prepared(config: DataConfig, path: str, split: str) -> TokenSource:
    manifest = shards.read_manifest(path, split)
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.hash != manifest.tokenizer_hash:
        raise UserError(
            f"data.tokenizer {config.tokenizer!r} is not the one that {path!r} was prepared with ({manifest.tokenizer!r}, "
            f"sha256 {manifest.tokenizer_hash[:12]}); point data.tokenizer to that file"
        )
    tokens = shards.open_shards(path, manifest)
    description = f"{split}: {path}: {manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.tokenizer!r}"
    return TokenSource(tokens, tokenizer, manifest.documents, manifest.bytes, None, (description,))
