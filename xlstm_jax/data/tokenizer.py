"""Text to token ids and back: bytes, or a file of the `tokenizers` library."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from xlstm_jax.errors import UserError
from xlstm_jax.installation import python

END_OF_TEXT = "<|endoftext|>"  # the name of that token in the GPT-2 and GPT-NeoX tokenizers
# Its names in the tokenizers of others (Llama 3, DeepSeek, Llama 2 and T5, Gemma, ...). The first
# of these that a tokenizer has ends a text, unless its file marks another one as `MARK` says.
ENDS_OF_TEXT = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
)
# `"end_of_text": true` in an entry of a tokenizer.json's "added_tokens": that token ends a text.
# The `tokenizers` library passes over it, and whoever copies the file copies the choice.
MARK = "end_of_text"
# Characters that a tokenizer without an id for every byte can't know: a control character, one
# that stands for nothing, rare letters. Their encoding shows what becomes of unknown characters.
UNKNOWN = "\x01 \U0010fffe \u2603 \U0001d518 \u6771 \u00e9"


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the end of a text."""

    name: str = "byte"
    hash: str = "byte"
    vocab_size: int = 257
    end_of_text: int = 256
    end_of_text_token: str | None = None

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, uint16."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[str], ends: Sequence[bool]) -> np.ndarray:
        """The ids of `encode_texts`."""
        return self.encode_texts(texts, ends)[0]

    def encode_texts(
        self, texts: Sequence[str], ends: Sequence[bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of several texts in a row, with an end-of-text token after each one whose entry of
        `ends` is true; and how many ids each text has, that token included.
        """
        parts = [
            np.frombuffer(text.encode() + b"\0" * ended, np.uint8).astype(np.uint16)
            for text, ended in zip(texts, ends, strict=True)
        ]
        for part, ended in zip(parts, ends, strict=True):
            part[len(part) - ended :] = self.end_of_text
        return np.concatenate(parts), np.array([len(part) for part in parts])

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids; ends of text become line feeds, bytes that are no UTF-8 become
        U+FFFD.
        """
        ids = np.asarray(ids)
        return (
            np.where(ids == self.end_of_text, ord("\n"), ids)
            .astype(np.uint8)
            .tobytes()
            .decode(errors="replace")
        )


@dataclasses.dataclass(frozen=True)
class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Attributes:
        hash: sha256 of the file, which a manifest records.
        vocab_size: one more than the largest id.
        end_of_text_token: its name, for example "</s>".
    """

    tokenizer: tokenizers.Tokenizer
    name: str
    hash: str
    vocab_size: int
    end_of_text: int
    end_of_text_token: str

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, without special tokens and never with the end-of-text token; uint32.

        Raises:
            UserError: a character that the tokenizer does not know becomes the end-of-text token.
        """
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.uint32)
        found = np.flatnonzero(ids == self.end_of_text)
        if not len(found):
            return ids
        # The words of the token stand in the text, e.g. "</s>" in HTML, and the vocabulary has
        # them: cut in two they are text.
        cuts = [0]
        for start, stop in (encoding.offsets[k] for k in found):
            if stop - start < 2:
                raise UserError(
                    f"tokenizer {self.name!r} makes its end-of-text token "
                    f"{self.end_of_text_token!r} of the character {text[start:stop]!r}, which "
                    f"would end the text there; take a tokenizer with an `unk_token` of its own, "
                    f"or one that knows every byte"
                )
            cuts.append(start + 1)
        cuts.append(len(text))
        return np.concatenate(
            [self.encode(text[cuts[k] : cuts[k + 1]]) for k in range(len(cuts) - 1)]
        )

    def encode_batch(self, texts: Sequence[str], ends: Sequence[bool]) -> np.ndarray:
        """The ids of `encode_texts`."""
        return self.encode_texts(texts, ends)[0]

    def encode_texts(
        self, texts: Sequence[str], ends: Sequence[bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of several texts in a row, with an end-of-text token after each one whose entry of
        `ends` is true; and how many ids each text has, that token included.

        Raises:
            UserError: as `encode`.
        """
        ids, lengths = [], []
        for encoding, ended in zip(
            self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), ends, strict=True
        ):
            own = encoding.ids
            ids += own
            if ended:
                ids.append(self.end_of_text)
            lengths.append(len(own) + ended)
        found = np.asarray(ids, np.uint32)
        if np.count_nonzero(found == self.end_of_text) == sum(map(bool, ends)):
            return found, np.array(lengths)
        end = np.array([self.end_of_text], np.uint32)
        parts = [
            np.concatenate([self.encode(text), end[:ended]])
            for text, ended in zip(texts, ends, strict=True)
        ]
        return np.concatenate(parts), np.array([len(part) for part in parts])

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: "byte", or the path of a tokenizer.json.

    Raises:
        UserError: no such file, not a tokenizer, or one whose end-of-text token is not known.
    """
    if name == "byte":
        return ByteTokenizer()
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(
            f"data.tokenizer {name!r} does not exist; give 'byte' or the path of a tokenizer.json"
        )
    return tokenizer_of(path.read_bytes(), name)


def tokenizer_of(content: bytes, path: str) -> FileTokenizer:
    """The tokenizer of a file's content; `path` is the file's, for its name and for errors.

    Chance, truncation and padding that the file asks for are switched off, and a text that holds
    the words of a special token is encoded as text.

    Raises:
        UserError: not a tokenizer, no end-of-text token, or unknown characters would become it.
    """
    values = _parsed(content, path)
    token = _end_of_text_of(values, path)
    if values["model"].get("dropout"):
        values["model"]["dropout"] = None  # a BPE with it gives other tokens at each call
    for entry in values.get("added_tokens") or []:
        if entry.get("content") == token:
            entry["special"] = True  # else its words in a text would become this token
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"data.tokenizer {path!r} is no file of the `tokenizers` library: {error}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    loaded = FileTokenizer(
        tokenizer,
        pathlib.Path(path).stem,
        hashlib.sha256(content).hexdigest(),
        largest + 1,
        tokenizer.token_to_id(token),
        token,
    )
    loaded.encode(UNKNOWN)
    return loaded


def with_end_of_text(content: bytes, path: str, token: str) -> bytes:
    """The content of a tokenizer file that says by `MARK` which token ends a text.

    Raises:
        UserError: not a tokenizer, or it has no such token.
    """
    values = _parsed(content, path)
    vocabulary = _vocabulary(values)
    if token not in vocabulary:
        raise UserError(
            f"tokenizer {path!r} has no token {token!r} that could end a text; {_some(values)}"
        )
    added = values.setdefault("added_tokens", None) or []
    for entry in added:
        entry.pop(MARK, None)
    for entry in (entry for entry in added if entry.get("content") == token):
        entry[MARK] = True
    if not any(entry.get(MARK) for entry in added):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        new = {"id": vocabulary[token], "content": token, **flags, "special": True, MARK: True}
        added = [*added, new]
    values["added_tokens"] = added
    return json.dumps(values, ensure_ascii=False).encode()


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        values = json.loads(content.decode())
        if isinstance(values, dict) and isinstance(values.get("model"), dict):
            return values
        reason = "it holds no object with a model"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"data.tokenizer {path!r} is no file of the `tokenizers` library: {reason}")


def _vocabulary(values: dict[str, Any]) -> dict[str, int]:
    """All tokens of a file with their ids; of a Unigram model the ids are the places in a list."""
    found = values["model"].get("vocab") or {}
    if isinstance(found, list):
        found = {entry[0]: number for number, entry in enumerate(found)}
    added = values.get("added_tokens") or []
    return {**found, **{entry["content"]: entry["id"] for entry in added if "content" in entry}}


def _end_of_text_of(values: dict[str, Any], path: str) -> str:
    """The name of the token that ends a text."""
    vocabulary = _vocabulary(values)
    marked = [entry["content"] for entry in values.get("added_tokens") or [] if entry.get(MARK)]
    for token in (*marked, *ENDS_OF_TEXT):
        if token in vocabulary:
            return token
    raise UserError(
        f"data.tokenizer {path!r} has no token {END_OF_TEXT!r}, which separates documents, nor "
        f"another one known for that ({', '.join(ENDS_OF_TEXT[1:])}); choose one with `{python()} -m "
        f"xlstm_jax.data.prepare --end-of-text=TOKEN`; {_some(values)}"
    )


def _some(values: dict[str, Any]) -> str:
    added = [entry.get("content") for entry in values.get("added_tokens") or []]
    return f"its special tokens are {', '.join(map(repr, added[:10])) or 'none'}"
