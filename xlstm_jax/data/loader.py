"""Token streams cut into samples and batches.

Sample i of training is a pure function of (stream, seed, context length, i): an epoch is a
permutation of the stream's non-overlapping windows, and epoch after epoch follows with a new one.
Of a mixture, each part has its own epochs. Resuming at a step needs the step alone, on any number
of hosts.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Int

from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.shards import ShardedTokens
from xlstm_jax.data.splits import TokenSource, open_named_split, open_split, open_validation_sets
from xlstm_jax.errors import UserError
from xlstm_jax.progress import counted

__all__ = [
    "Batch",
    "TokenSource",
    "check_samples",
    "document_positions",
    "eval_batches",
    "make_batch",
    "open_named_split",
    "open_split",
    "open_validation_sets",
    "position",
    "record",
    "train_batches",
]

READ_AHEAD = 8  # batches that a reader thread, or each worker process, prepares in advance
# More epochs than anybody trains. An endless dataset of grain would fail in len().
EPOCHS = 1 << 20


class Batch(NamedTuple):
    """Inputs and what follows them, on the host or on devices."""

    tokens: Int[Array | np.ndarray, "B T"]  # int32
    targets: Int[Array | np.ndarray, "B T"]  # int32, the next token; -1 where it does not count
    # int32, number of the document within the sample; -1 for padding
    segment_ids: Int[Array | np.ndarray, "B T"]

    @property
    def mask(self) -> Bool[Array | np.ndarray, "B T"]:
        """Whether the target counts; on the device where the batch is."""
        return self.targets >= 0


def train_batches(
    source: TokenSource, config: DataConfig, start_step: int = 0, *, part: int = 0, parts: int = 1
) -> Iterator[Batch]:
    """Batches for the steps after `start_step`, for more epochs than anybody trains.

    Of `parts` hosts, which read different rows of the same batches, host number `part` gets the
    B/parts rows from part·B/parts on.

    Raises:
        UserError: the stream is shorter than one sample, or the rows can't be dealt out evenly.
    """
    if config.batch_size % parts:
        raise UserError(
            f"config key data.batch_size is {config.batch_size}, which {parts} hosts can't share; "
            f"use a multiple"
        )
    check_samples(source, config)
    weights, sources = zip(*source.parts, strict=True) if source.parts else ((1.0,), (source,))
    files = contextlib.ExitStack()
    if config.workers:
        sources = [_in_files(part_source, files) for part_source in sources]
    samples = [_samples(part_source, config, number) for number, part_source in enumerate(sources)]
    dataset = samples[0] if len(samples) == 1 else grain.MapDataset.mix(samples, weights)
    finish = functools.partial(
        _stack, end_of_text=source.end_of_text, reset_at_document=config.reset_at_document
    )
    dataset = dataset.batch(config.batch_size // parts, batch_fn=finish).slice(
        slice(start_step * parts + part, None, parts)
    )
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    )
    if config.workers:
        # Grain's worker processes read absl's flags, which nobody has parsed in a notebook.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return _own_batches(iter(dataset), config.workers, files)


def eval_batches(
    source: TokenSource,
    batch_size: int,
    context_length: int,
    max_tokens: int | None = None,
    *,
    reset_at_document: bool = False,
) -> Iterator[Batch]:
    """The stream in order, every token after the first one a target exactly once; the end is padded
    to whole batches.

    `max_tokens` ends it after that many targets.
    """
    targets = len(source.tokens) - 1
    targets = targets if max_tokens is None else min(targets, max_tokens)
    size = batch_size * context_length
    for start in range(0, targets, size):
        stream = np.asarray(source.tokens[start : min(start + size, targets) + 1])
        count = len(stream) - 1
        stream = np.pad(stream, (0, size - count), constant_values=source.end_of_text)
        windows = np.lib.stride_tricks.sliding_window_view(stream, context_length + 1)[
            ::context_length
        ]
        lengths = np.clip(count - np.arange(0, size, context_length), 0, context_length)
        yield make_batch(windows, source.end_of_text, reset_at_document, lengths)


def make_batch(
    windows: Int[np.ndarray, "B T+1"],
    end_of_text: int,
    reset_at_document: bool,
    lengths: Int[np.ndarray, " B"] | None = None,
) -> Batch:
    """A batch from neighbouring tokens; of a row with fewer than T targets `lengths` tells how
    many, the rest is padding.

    An end-of-text token is the last of its document. With `reset_at_document` nothing is known when
    a document's first token is to be predicted, so that it does not count: that target is -1, as
    those of padding are.
    """
    windows = windows.astype(np.int32)
    tokens, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
    ends = tokens == end_of_text
    segment_ids = np.cumsum(ends, axis=1, dtype=np.int32)
    segment_ids -= ends
    if reset_at_document:
        targets[ends] = -1
    if lengths is not None:
        missing = np.arange(tokens.shape[1]) >= lengths[:, None]
        segment_ids[missing] = targets[missing] = -1
    return Batch(tokens, targets, segment_ids)


def document_positions(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """How many tokens of its document stand before each token in its row; on the device, for models
    that need positions.
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def position(source: TokenSource, config: DataConfig, step: int) -> dict[str, int]:
    """The place in the data after a step, as numbers for a checkpoint; other data give other
    numbers.
    """
    return {
        "next_sample": step * config.batch_size,
        "stream_tokens": len(source.tokens),
        "fingerprint": source.fingerprint,
    }


def record(source: TokenSource, held_out: dict[str, TokenSource], config: DataConfig) -> str:
    """What a run is trained and evaluated on, as JSON: files with their hashes, how much of them,
    in which order.
    """
    order = {
        "seed": config.seed,
        "context_length": config.context_length,
        "batch_size": config.batch_size,
    }
    read = {"train": source, **held_out}
    records = {
        name: {**part.record, "tokens": len(part.tokens) - 1, "fingerprint": part.fingerprint}
        for name, part in read.items()
    }
    return json.dumps({**records, "train": {**order, **records["train"]}}, indent=1) + "\n"


def check_samples(source: TokenSource, config: DataConfig) -> None:
    """Raises `UserError` where a stream, or a part of a mixture, is shorter than one sample."""
    for stream in [part for _, part in source.parts] or [source]:
        if len(stream.tokens) <= config.context_length:
            tokens = counted(len(stream.tokens), "token")
            raise UserError(
                f"data path {config.path!r} has {tokens}, less than one sample of "
                f"data.context_length {config.context_length} + 1; give more text or shorten it"
            )


def _samples(source: TokenSource, config: DataConfig, number: int) -> grain.MapDataset:
    """The shuffled windows of a stream, the `number`-th of a mixture, epoch after epoch."""
    windows = _Windows(source.tokens, config.context_length)
    return grain.MapDataset.source(windows).seed(config.seed + number).shuffle().repeat(EPOCHS)


class _Windows:
    """The non-overlapping stretches of T + 1 tokens of a stream, the last of each being the first
    of the next.
    """

    def __init__(self, tokens: Any, context_length: int):
        self._tokens, self._context_length = tokens, context_length

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._context_length

    def __getitem__(self, index: int) -> Int[np.ndarray, " T+1"]:
        start = index * self._context_length
        return self._tokens[start : start + self._context_length + 1]


def _in_files(source: TokenSource, files: contextlib.ExitStack) -> TokenSource:
    """Tokens that lie in memory as a file, until `files` is closed: each worker process gets the
    file's name instead of a copy of its own. Through the pipe to a process that has died at its
    start a copy would be written for ever.
    """
    if not isinstance(source.tokens, np.ndarray):
        return source
    folder = pathlib.Path(files.enter_context(tempfile.TemporaryDirectory(prefix="xlstm-tokens-")))
    first, *_ = source.tokens[:1].tolist()
    dtype = source.tokens.dtype.newbyteorder("<")
    source.tokens[1:].astype(dtype).tofile(folder / "tokens.bin")
    tokens = ShardedTokens([folder / "tokens.bin"], [len(source.tokens) - 1], dtype.str, first)
    return dataclasses.replace(source, tokens=tokens)


def _own_batches(
    batches: grain.DatasetIterator, workers: int, files: contextlib.ExitStack
) -> Iterator[Batch]:
    """The same batches; threads, processes and their files end with their last user.

    With worker processes in memory of this process: what they hand over lies in shared memory,
    which grain does not always give back.

    Raises:
        UserError: a worker process has died before its first batch.
    """
    count = 0
    try:
        for batch in batches:
            count += 1
            yield Batch(*map(np.array, batch)) if workers else batch
    except RuntimeError as error:
        if count >= workers or "Worker process was terminated" not in str(error):
            raise
        raise UserError(
            f"a reader process has died (data.workers is {workers}); what it said stands above. "
            f"Each begins by importing the script that was started: put what that does below "
            f'`if __name__ == "__main__":`, or take data.workers=0'
        ) from None
    finally:
        with files:
            batches.close()


def _stack(windows: Sequence[np.ndarray], end_of_text: int, reset_at_document: bool) -> Batch:
    return make_batch(np.stack(windows), end_of_text, reset_at_document)
