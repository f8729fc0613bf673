"""Token streams made of others, and a random one: with a length and slices, as arrays have."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm_jax.data.shards import dtype_of

SHORTEST_STRETCH = 64  # tokens that are taken of a part of a mixture at a time, at least
READ = 1 << 16  # tokens that are read at a time
SYNTHETIC_BASE = 1 << 22  # random tokens that are drawn; behind them they repeat
SYNTHETIC_DOCUMENT = 1024  # tokens of a document, on average


class Stretch:
    """The tokens of a stream from `start` to `stop`."""

    def __init__(self, stream: Any, start: int, stop: int):
        self._stream, self._start, self._length = stream, start, stop - start

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        return self._stream[self._start + start : self._start + max(start, stop)]


class JoinedTokens:
    """Several streams one after the other, or the beginning of one: `stop` tokens of it."""

    def __init__(self, streams: Sequence[Any], stop: int | None = None):
        self._streams = list(streams)
        self._starts = np.cumsum([0, *map(len, self._streams)]).tolist()
        self._length = self._starts[-1] if stop is None else min(stop, self._starts[-1])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        parts = [
            stream[max(start - first, 0) : stop - first]
            for stream, first in zip(self._streams, self._starts, strict=False)
            if first < stop and first + len(stream) > start
        ]
        return (
            parts[0]
            if len(parts) == 1
            else np.concatenate(parts)
            if parts
            else np.zeros(0, np.int32)
        )


def woven(streams: Sequence[Any], weights: Sequence[float], end_of_text: int) -> JoinedTokens:
    """All documents of several streams, so mixed that any beginning has tokens of each of them by
    weight, as long as it has some: an evaluation of the first tokens then is one of the mixture.

    Each stream begins with an end-of-text token; the result has one in front. The stretches of a
    stream end with documents and grow with the place in it, by an eighth, so that there are few.
    """
    places = [1] * len(streams)
    stretches = [Stretch(streams[0], 0, 1)]
    while left := [k for k, stream in enumerate(streams) if places[k] < len(stream)]:
        next_one = min(left, key=lambda k: places[k] / weights[k])
        start = places[next_one]
        least = start + max(SHORTEST_STRETCH, start // 8)
        stop = _document_end(streams[next_one], least - 1, end_of_text)
        stretches.append(Stretch(streams[next_one], start, stop))
        places[next_one] = stop
    return JoinedTokens(stretches)


def _document_end(stream: Any, place: int, end_of_text: int) -> int:
    """The place behind the first end-of-text token from `place` on."""
    while place < len(stream):
        block = stream[place : place + READ]
        ends = np.flatnonzero(block == end_of_text)
        if len(ends):
            return place + int(ends[0]) + 1
        place += len(block)
    return len(stream)


class SyntheticTokens:
    """Random tokens, the same on every machine, from a block that repeats."""

    def __init__(self, length: int, vocab_size: int, end_of_text: int):
        self._arguments = length, vocab_size, end_of_text
        draw = np.random.Generator(np.random.PCG64(0))  # numpy promises the same numbers for ever
        self._base = draw.integers(0, vocab_size, SYNTHETIC_BASE).astype(dtype_of(vocab_size))
        self._base[draw.integers(0, SYNTHETIC_BASE, SYNTHETIC_BASE // SYNTHETIC_DOCUMENT)] = (
            end_of_text
        )
        self._base[0] = end_of_text
        self._length = length

    def __reduce__(self) -> tuple:  # drawn again instead of sent to another process
        return SyntheticTokens, self._arguments

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        offset = start % SYNTHETIC_BASE
        if offset + stop - start <= SYNTHETIC_BASE:
            return self._base[offset : offset + stop - start]
        return np.take(self._base, np.arange(start, stop), mode="wrap")
