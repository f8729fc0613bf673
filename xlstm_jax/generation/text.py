"""Tokens to text while they come: whole characters only, and nothing that a stop string may take
back.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm_jax.data.tokenizer import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


class Ending(NamedTuple):
    """Where a stop string was found: tokens up to the one that completed it, and the stop string."""

    tokens: int
    stop: str


class TextStream:
    """One text, token by token.

    `add` returns what can be shown: characters whose bytes are all there and that no stop string
    can begin with any more. The stop string itself is never shown. Costs are constant per token:
    only the last few tokens are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), context: Sequence[int] = ()):
        self._tokenizer, self._stop = tokenizer, tuple(string for string in stop if string)
        # A tokenizer may write a token differently at the beginning of a text: the last tokens of
        # the prompt come before.
        self._tokens = list(context)[-4:]
        self._decoded_from, self._decoded_to = 0, len(self._tokens)
        self._count = 0
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.text = ""
        self.ending: Ending | None = None

    def add(self, token: int) -> str:
        """The text that this token makes final; "" after an ending."""
        if self.ending is not None:
            return ""
        self._tokens.append(int(token))
        self._count += 1
        before = self._decode(self._decoded_to)
        now = self._decode(len(self._tokens))
        # a character has up to 4 bytes
        if now.endswith(UNFINISHED) and len(self._tokens) - self._decoded_to < 8:
            return ""
        self._decoded_from, self._decoded_to = self._decoded_to, len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.ending is not None:
            return ""
        rest = self._decode(len(self._tokens))[len(self._decode(self._decoded_to)) :]
        self._decoded_to = len(self._tokens)
        shown = self._release(rest)
        if self.ending is None:
            tail, self._held = self._held, ""
            self.text += tail
            shown += tail
        return shown

    def _decode(self, end: int) -> str:
        return (
            self._tokenizer.decode(np.asarray(self._tokens[self._decoded_from : end], np.int64))
            if end > self._decoded_from
            else ""
        )

    def _release(self, new: str) -> str:
        self._held += new
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            shown, self._held = self._held[:at], ""
            self.ending = Ending(self._count, stop)
        else:
            held = max((_overlap(self._held, stop) for stop in self._stop), default=0)
            shown, self._held = (
                self._held[: len(self._held) - held],
                self._held[len(self._held) - held :],
            )
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next(
        (
            length
            for length in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:length])
        ),
        0,
    )
