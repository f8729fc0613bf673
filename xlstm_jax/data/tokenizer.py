"""Text to token ids and back: bytes, or a file of the `tokenizers` library."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from xlstm_jax.errors import UserError

END_OF_TEXT = "<|endoftext|>"  # the name of that token in the GPT-2 and GPT-NeoX tokenizers


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the end of a text."""

    name: str = "byte"
    hash: str = "byte"
    vocab_size: int = 257
    end_of_text: int = 256

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, uint16."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[str], ends: Sequence[bool]) -> np.ndarray:
        """Ids of several texts in a row, with an end-of-text token after each one whose entry of
        `ends` is true.
        """
        end = np.array([self.end_of_text], np.uint16)
        return np.concatenate(
            [
                part
                for text, ended in zip(texts, ends, strict=True)
                for part in (self.encode(text), end[:ended])
            ]
        )

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids; ends of text become line feeds, bytes that are no UTF-8 become U+FFFD."""
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
    """

    tokenizer: tokenizers.Tokenizer
    name: str
    hash: str
    vocab_size: int
    end_of_text: int

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, without special tokens; uint32."""
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    def encode_batch(self, texts: Sequence[str], ends: Sequence[bool]) -> np.ndarray:
        """Ids of several texts in a row, with an end-of-text token after each one whose entry of
        `ends` is true.
        """
        ids = []
        for encoding, ended in zip(
            self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), ends, strict=True
        ):
            ids += encoding.ids
            if ended:
                ids.append(self.end_of_text)
        return np.asarray(ids, np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


Tokenizer = ByteTokenizer | FileTokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `data.tokenizer`: "byte", or the path of a tokenizer.json.

    Raises:
        UserError: no such file, not a tokenizer, or one without an end-of-text token.
    """
    if name == "byte":
        return ByteTokenizer()
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(
            f"data.tokenizer {name!r} does not exist; give 'byte' or the path of a tokenizer.json"
        )
    content = path.read_bytes()
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"data.tokenizer {name!r} is no file of the `tokenizers` library: {error}"
        ) from None
    tokenizer.no_truncation()  # which a file may ask for
    tokenizer.no_padding()
    # a text that speaks of "<|endoftext|>" does not end there
    tokenizer.encode_special_tokens = True
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    if end_of_text is None:
        raise UserError(
            f"data.tokenizer {name!r} has no token {END_OF_TEXT!r}; add it, documents are "
            f"separated by it"
        )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    return FileTokenizer(
        tokenizer, path.stem, hashlib.sha256(content).hexdigest(), largest + 1, end_of_text
    )
