"""Text pieces to tokens: many documents at a time, and a long one in parts that give the tokens of
the whole.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from xlstm_jax.data.documents import Piece
from xlstm_jax.data.tokenizer import Tokenizer

# Characters that are tokenized at a time. The `tokenizers` library needs about 150 bytes of memory
# for each of their tokens.
BATCH = 1 << 20
# A document of more characters than this is tokenized in parts. A place for the cut is looked for
# in the last SEARCH characters of a part, and tried on WINDOW characters on either side of it.
LONGEST = 1 << 20
SEARCH = 1 << 16
WINDOW = 256
TRIES = 32  # places that are tried at most, the last ones first
WORD_ENDS = re.compile(r"(?<=\S)(?=\s)")  # a token of a byte-level BPE never crosses them
KIND_CHANGES = re.compile(r"(?<=[^\W\d_])(?=[\W\d_])|(?<=\d)(?=\D)")


class Tokens:
    """The tokens of one batch of text.

    Attributes:
        ids: of the documents; where one ends, an end-of-text token follows.
        parts: the text.
        lengths: how many ids each part has.
    """

    def __init__(self, ids: np.ndarray, parts: list[Piece], lengths: np.ndarray):
        self.ids, self.parts, self.lengths = ids, parts, lengths

    @property
    def documents(self) -> int:
        """How many documents end in this batch."""
        return sum(part.last for part in self.parts)

    @property
    def bytes(self) -> int:
        """Size of the text in UTF-8."""
        return sum(
            len(part.text) if part.text.isascii() else len(part.text.encode())
            for part in self.parts
        )

    def up_to_document_end(self, tokens: int) -> "Tokens | None":
        """The beginning that has at least so many tokens and ends with a document, as short as can
        be; None where no document ends behind so many tokens.
        """
        stops = np.cumsum(self.lengths)
        for count, (part, stop) in enumerate(zip(self.parts, stops, strict=True), 1):
            if part.last and stop >= tokens:
                return Tokens(self.ids[:stop], self.parts[:count], self.lengths[:count])
        return None


def encode_pieces(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """Tokens of a stream of documents, in order, `BATCH` characters at a time."""
    batch, size = [], 0
    for part in _parts(pieces, tokenizer):
        batch.append(part)
        size += len(part.text)
        if size >= BATCH:
            yield _encode(batch, tokenizer)
            batch, size = [], 0
    if batch:
        yield _encode(batch, tokenizer)


def _encode(batch: list[Piece], tokenizer: Tokenizer) -> Tokens:
    ids, lengths = tokenizer.encode_texts(
        [part.text for part in batch], [part.last for part in batch]
    )
    return Tokens(ids, batch, lengths)


def _parts(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Parts of at most `LONGEST` characters that can be tokenized one by one."""
    rest = ""
    for text, last in pieces:
        text, start = rest + text, 0
        while len(text) - start > LONGEST:
            cut = find_cut(text, start, start + LONGEST, tokenizer)
            yield Piece(text[start:cut], False)
            start = cut
        rest = text[start:]
        if last:
            yield Piece(rest, True)
            rest = ""


def find_cut(text: str, start: int, end: int, tokenizer: Tokenizer) -> int:
    """The last place between `start` and `end` where a cut leaves the tokens as they are; tried on
    the text around it.

    Ends of words come first, then changes between letters, digits and the rest. Where neither is
    found within `SEARCH` characters, `end` itself: the text stays whole, a word of 65,536 letters
    gets other tokens.
    """
    start = max(end - SEARCH, start + 1)
    for pattern in (WORD_ENDS, KIND_CHANGES):
        places = [match.start() for match in pattern.finditer(text, start, end)]
        for place in places[: -TRIES - 1 : -1]:
            before, after = text[max(place - WINDOW, 0) : place], text[place : place + WINDOW]
            whole = tokenizer.encode(before + after)
            if np.array_equal(
                whole, np.concatenate([tokenizer.encode(before), tokenizer.encode(after)])
            ):
                return place
    return end
