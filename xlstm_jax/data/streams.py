"""Token streams made of others, and a random one: with a length and slices, as arrays have."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm_jax.data.shards import dtype_of

SYNTHETIC_BASE = 1 << 22  # random tokens that are drawn; behind them they repeat
SYNTHETIC_DOCUMENT = 1024  # tokens of a document, on average


class JoinedTokens:
    """Several streams one after the other, or the beginning of one: `stop` tokens of it.

    With `seams` the streams are splits, each of which begins with an end-of-text token: of the
    second and those behind it that token is left out, as the split before has ended with one.
    """

    def __init__(self, streams: Sequence[Any], stop: int | None = None, *, seams: bool = False):
        self._streams = list(streams)
        self._skipped = [int(seams and k > 0) for k in range(len(self._streams))]
        lengths = [
            len(stream) - skipped
            for stream, skipped in zip(self._streams, self._skipped, strict=True)
        ]
        self._starts = np.cumsum([0, *lengths]).tolist()
        self._length = self._starts[-1] if stop is None else min(stop, self._starts[-1])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        parts = [
            stream[max(start - first, 0) + skipped : stop - first + skipped]
            for stream, skipped, first, end in zip(
                self._streams, self._skipped, self._starts, self._starts[1:], strict=False
            )
            if first < stop and end > start
        ]
        return (
            parts[0]
            if len(parts) == 1
            else np.concatenate(parts)
            if parts
            else np.zeros(0, np.int32)
        )


class SyntheticTokens:
    """Random tokens, the same on every machine, from a block that repeats."""

    def __init__(self, length: int, vocab_size: int, end_of_text: int):
        draw = np.random.Generator(np.random.PCG64(0))  # numpy promises the same numbers for ever
        self._base = draw.integers(0, vocab_size, SYNTHETIC_BASE).astype(dtype_of(vocab_size))
        self._base[draw.integers(0, SYNTHETIC_BASE, SYNTHETIC_BASE // SYNTHETIC_DOCUMENT)] = (
            end_of_text
        )
        self._base[0] = end_of_text
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, _ = span.indices(self._length)
        offset = start % SYNTHETIC_BASE
        if offset + stop - start <= SYNTHETIC_BASE:
            return self._base[offset : offset + stop - start]
        return np.take(self._base, np.arange(start, stop), mode="wrap")
