"""Tokens to text while they come: whole characters only, and nothing that a stop string may take
back. Where one call ends and the next one begins changes nothing.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from xlstm_jax.data.tokenizer import FileTokenizer, Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to
CONTEXT = 4  # tokens before a token that are decoded with it
# A character has at most 4 bytes, so that what is unfinished after 8 tokens is no text.
UNFINISHED_TOKENS = 8


class Ending(NamedTuple):
    """Where a stop string was found: how many added tokens it took, and the stop string."""

    tokens: int
    stop: str


class TextStream:
    """One text, token by token.

    `add` returns what can be shown: characters whose bytes are all there and that no stop string
    can begin with any more. The stop string itself is never shown. Costs are constant per token:
    only the last few tokens are decoded again.

    A text may be written in several calls. The next call's stream is made with what `unshown` says
    of this one's last tokens; it gives the text that one stream for all tokens would give.

    Args:
        context: the tokens before. A tokenizer may write a token differently at the beginning of a
            text: one that marks words by the space before them leaves out the first one's.
        unshown: the tokens of an earlier call whose text was not given out in full. What of it can
            be shown now is in `text`.
        given: how many of their characters were given out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
        unshown: Sequence[int] = (),
        given: int = 0,
    ):
        self._tokenizer, self._stop = tokenizer, tuple(string for string in stop if string)
        self._tokens = list(context)[-CONTEXT:]
        self._decoded_from, self._decoded_to = 0, len(self._tokens)
        self._count = -len(unshown)
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self._given_before = given
        # Pairs (number of tokens, number of characters of their text), one for each call that could
        # decode all tokens so far. The first pair is the last one whose text was given out in full:
        # the tokens behind it are those that `unshown` counts.
        self._characters = 0
        self._pauses = [(len(self._tokens), 0)]
        self.text = ""
        self.ending: Ending | None = None
        for token in unshown:
            self.add(token)

    def add(self, token: int) -> str:
        """The text that this token makes final; "" after an ending."""
        if self.ending is not None:
            return ""
        self._tokens.append(int(token))
        self._count += 1
        before = self._decode(self._decoded_to)
        now = self._decode(len(self._tokens))
        # Half a character: its other bytes are waited for.
        unfinished = len(self._tokens) - self._decoded_to
        if now.endswith(UNFINISHED) and unfinished < UNFINISHED_TOKENS:
            return ""
        self._decoded_to = len(self._tokens)
        self._decoded_from = max(0, self._decoded_to - CONTEXT)
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

    def unshown(self) -> tuple[int, int]:
        """(tokens at the end whose text was not given out in full, characters of it that were)."""
        if self.ending is not None:
            return 0, 0
        tokens, characters = self._pauses[0]
        count = len(self._tokens) - tokens
        return count, self._characters - len(self._held) - characters if count else 0

    def _decode(self, end: int) -> str:
        return (
            self._tokenizer.decode(np.asarray(self._tokens[self._decoded_from : end], np.int64))
            if end > self._decoded_from
            else ""
        )

    def _release(self, new: str) -> str:
        self._characters += len(new)
        self._pauses.append((self._decoded_to, self._characters))
        known, self._given_before = self._given_before, max(0, self._given_before - len(new))
        self._held += new[known:]
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
        given = self._characters - len(self._held)
        while len(self._pauses) > 1 and self._pauses[1][1] <= given:
            del self._pauses[0]
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


def continuing(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for a text that goes on behind another: many put a space before whatever they
    are given, which there would be a space that nobody wrote.
    """
    if not isinstance(tokenizer, FileTokenizer):
        return tokenizer
    fields = json.loads(tokenizer.tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        fields[part] = _without_first_space(fields[part])
    changed = tokenizers.Tokenizer.from_str(json.dumps(fields))
    changed.encode_special_tokens = tokenizer.tokenizer.encode_special_tokens
    return dataclasses.replace(tokenizer, tokenizer=changed)


def _without_first_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, as `tokenizers` stores it, that puts nothing before a text;
    None where it did nothing else.
    """
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence"}:
            (name,) = part.keys() & {"normalizers", "pretokenizers"}
            kept = [_without_first_space(member) for member in part[name]]
            return {**part, name: [member for member in kept if member is not None]}
    return part
