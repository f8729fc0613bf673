"""Retrieval of the Long Range Arena (2011.04006, section 2.2.3): does one paper of the ACL
Anthology Network cite the other? Two texts, one class.

The data are the release's own files, which lie on the disk: `new_aan_pairs.train.tsv`, `.eval.tsv`
and `.test.tsv`, a pair a line: label, two ids, two texts, with tabs between. Files are read by the
line, when a pair is asked for.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models.classifier import POOLINGS
from xlstm_jax.settings import setting
from xlstm_jax.tasks.classification import Classification, Plan
from xlstm_jax.typing import Int

FILES = {"train": "train", "validation": "eval", "test": "test"}
PAD, END, UNKNOWN, FIRST = 0, 1, 2, 3  # tokens; then characters or bytes
BYTES = 256
AT_ONCE = 1 << 26  # bytes, when a file is looked through


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Settings of the pairs of papers."""

    path: str = setting(
        "data/tsv_data", "folder with new_aan_pairs.{train,eval,test}.tsv", place=True
    )
    input: str = setting(
        "characters",
        'the characters of the training texts (as for S4 and S5), or "bytes" (as in the Arena)',
        choices=("characters", "bytes"),
    )
    least_count: int = setting(
        15, "of a character in the training texts; rarer ones are one token", at_least=1
    )
    pooling: str = setting(
        "mean", 'of a text, or its "last" token: what the class is told from', choices=POOLINGS
    )


class Pairs:
    """The pairs of a file, by number.

    Raises:
        UserError: there is no such file, or it has no pairs.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(
                f"config key task.retrieval.path: {str(path)!r} does not exist; the Long Range "
                "Arena's release has it in tsv_data"
            )
        if not path.stat().st_size:
            raise UserError(f"{str(path)!r} is empty; fetch it again")
        self.content = np.memmap(path, np.uint8, "r")
        ends = [
            start + np.flatnonzero(self.content[start : start + AT_ONCE] == ord("\n"))
            for start in range(0, len(self.content), AT_ONCE)
        ]
        borders = np.concatenate([[-1], *ends])
        if borders[-1] != len(self.content) - 1:
            borders = np.append(borders, len(self.content))  # a last line without its end
        self.borders = borders
        self[0]  # what has another form is refused at once

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, number: int) -> tuple[int, tuple[bytes, bytes]]:
        """(label, texts)."""
        line = self.content[self.borders[number] + 1 : self.borders[number + 1]].tobytes()
        fields = line.rstrip(b"\r").split(b"\t")
        if len(fields) != 5 or fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
            raise UserError(
                f"{str(self.path)!r}, line {number + 1}: it has {len(fields)} fields, the first "
                f"{fields[0][:20]!r}; a pair has five: label 0 or 1, two ids, two texts"
            )
        return int(float(fields[0])), (fields[3], fields[4])


class Retrieval(Classification):
    """Tells whether one text cites the other."""

    settings: RetrievalConfig

    @property
    def plan(self) -> Plan:
        return Plan(2, None, self.settings.pooling, pairs=True)

    @functools.cached_property
    def pairs(self) -> dict[str, Pairs]:
        """The pairs of each split."""
        folder = pathlib.Path(self.settings.path).expanduser()
        return {split: Pairs(folder / f"new_aan_pairs.{name}.tsv") for split, name in FILES.items()}

    @functools.cached_property
    def characters(self) -> dict[str, int]:
        """The tokens of characters, of which the training texts have enough; all texts are read."""
        counts: collections.Counter = collections.Counter()
        pairs = self.pairs["train"]
        for number in range(len(pairs)):
            for text in pairs[number][1]:
                counts.update(text.decode(errors="replace"))
        kept = sorted(c for c, count in counts.items() if count >= self.settings.least_count)
        return {character: FIRST + number for number, character in enumerate(kept)}

    def tokens(self, text: bytes) -> Int[np.ndarray, " T"]:
        """A text, cut off so that the end fits behind it."""
        room = self.data.context_length - 1
        if self.settings.input == "bytes":
            found = np.frombuffer(text[:room], np.uint8).astype(np.int32) + FIRST
        else:
            known = self.characters
            found = [known.get(c, UNKNOWN) for c in text.decode(errors="replace")[:room]]
        return np.append(np.asarray(found, np.int32), np.int32(END))

    def count(self, split: str) -> int:
        return len(self.pairs[split])

    def sample(self, split: str, seed: int, number: int) -> tuple[Any, int]:
        label, texts = self.pairs[split][number % self.count(split)]
        return tuple(map(self.tokens, texts)), label

    def check(self) -> None:
        _ = self.pairs
        letters = BYTES if self.settings.input == "bytes" else len(self.characters)
        vocab_size = self.model_config.vocab_size
        if vocab_size < FIRST + letters:
            raise UserError(
                f"config key model.vocab_size is {vocab_size}; the texts have {letters} different "
                f"{self.settings.input}, and {FIRST} tokens come to them"
            )

    def description(self) -> list[str]:
        counts = {split: f"{self.count(split):,}" for split in FILES}
        return [f"pairs of papers: {', '.join(f'{n} of {s}' for s, n in counts.items())}"]

    def record(self) -> dict[str, dict[str, Any]]:
        return {
            split: {"pairs": len(pairs), "fingerprint": _hash(pairs.path)}
            for split, pairs in self.pairs.items()
        }


def _hash(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
