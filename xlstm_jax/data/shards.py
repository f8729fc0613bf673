"""Token shards: flat files of unsigned integers and a manifest, the form in which a prepared corpus
lies on disk.

A prepared folder holds `train/`, `validation/`, each with `manifest.json` and its shards, and
`tokenizer.json` where the tokenizer is a file. A split's token stream is its shards in the
manifest's order; every document ends with the end-of-text token.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xlstm_jax.data.writing import PartialFile, write_whole
from xlstm_jax.errors import UserError
from xlstm_jax.installation import python

MANIFEST = "manifest.json"
PLAN = "plan.json"  # of a preparation that is not finished
LOCK = ".lock"  # in the folder of every split that was prepared from files
SPLITS = ("train", "validation")
FORMAT = 1
OPEN_FILES = 256  # files that a process keeps open at a time
# Bytes of shards that are hashed when a split is opened, which takes 0.13 s at 2 GB/s.
CHECKED = 1 << 28


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Input:
    """A file that tokens were made of, in the order of the tokens. The sha256 of a local file is
    that of what was read, of the hub's files what the hub says, where it says it.
    """

    file: str
    size: int
    sha256: str | None
    shard: str
    documents: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a split's folder holds."""

    split: str
    tokenizer: str  # name
    tokenizer_hash: str
    vocab_size: int
    end_of_text: int
    dtype: str  # "uint16" or "uint32", little-endian
    tokens: int
    documents: int
    bytes: int  # of the documents' UTF-8 text
    shards: tuple[Shard, ...]
    source: str = "memory"
    inputs: tuple[Input, ...] = ()
    # records left out, by kind; report.jsonl names each
    damaged: dict[str, int] = dataclasses.field(default_factory=dict)
    # what `xlstm_jax.data.prepare` was asked for
    request: dict = dataclasses.field(default_factory=dict)
    end_of_text_token: str | None = None  # its name; None for bytes, which have no name for it
    format: int = FORMAT

    def fingerprint(self) -> int:
        """53 bits that another content, order or tokenizer changes; exact as a number of JSON."""
        content = json.dumps(
            [
                self.tokenizer_hash,
                self.dtype,
                [(shard.tokens, shard.sha256) for shard in self.shards],
            ]
        )
        return int(hashlib.sha256(content.encode()).hexdigest()[:13], 16)


class ShardWriter:
    """One shard while it is written, as a context: its file exists when it is complete, an error
    removes what was written, and a killed process leaves a `.partial` file.
    """

    def __init__(self, path: pathlib.Path, dtype: str):
        self.path, self._dtype = path, np.dtype(dtype).newbyteorder("<")
        self._partial = PartialFile(path)
        self._hash, self.tokens = hashlib.sha256(), 0

    def write(self, ids: np.ndarray) -> None:
        """Appends tokens."""
        content = ids.astype(self._dtype).tobytes()
        self._partial.file.write(content)
        self._hash.update(content)
        self.tokens += len(ids)

    def close(self) -> Shard:
        """Completes the file, safe from a loss of power."""
        self._partial.finish()
        return Shard(self.path.name, self.tokens, self._hash.hexdigest())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._partial.discard()


class ShardedTokens:
    """The token stream of a split in several files; `stream[start:stop]` reads across their
    borders.

    It starts with an end-of-text token that stands in no file. Files are opened when they are read,
    at most `OPEN_FILES` at a time, and not taken along to other processes.
    """

    def __init__(
        self, paths: Sequence[pathlib.Path], lengths: Sequence[int], dtype: str, end_of_text: int
    ):
        self._paths, self._dtype = list(paths), np.dtype(dtype).newbyteorder("<")
        self._start = np.array([end_of_text], self._dtype)
        self._ends = np.cumsum([1, *lengths]).tolist()
        self._open = functools.lru_cache(OPEN_FILES)(_OpenFile)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"a token stream is read in steps of 1, not {step}")
        parts = []
        # Part 0 is the end-of-text token in front of the stream, part k is the file k - 1.
        part = bisect.bisect_right(self._ends, start)
        while start < stop:
            end = min(stop, self._ends[part])
            parts.append(
                self._read(part - 1, start - self._ends[part - 1], end - start)
                if part
                else self._start
            )
            start, part = end, part + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else self._start[:0]

    def _read(self, file: int, first: int, count: int) -> np.ndarray:
        size = self._dtype.itemsize
        content = os.pread(self._open(self._paths[file]).descriptor, count * size, first * size)
        if len(content) != count * size:
            raise OSError(f"shard {self._paths[file]} has become shorter while it is read")
        return np.frombuffer(content, self._dtype)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _open=functools.lru_cache(OPEN_FILES)(_OpenFile))


class _OpenFile:
    """A file descriptor that closes with its last user."""

    def __init__(self, path: pathlib.Path):
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


def dtype_of(vocab_size: int) -> str:
    """The smallest type that holds all ids."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_shards(
    folder: pathlib.Path,
    split: str,
    tokenizer,
    documents: Iterable[str],
    tokens_per_shard: int = 1 << 27,
) -> Manifest:
    """Tokenizes documents in memory into `folder/split/`; `xlstm_jax.data.prepare` does it for
    files.

    `tokenizer` is one of `xlstm_jax.data.tokenizer`; an existing manifest is not overwritten
    (`UserError`).
    """
    target = pathlib.Path(folder) / split
    if (target / MANIFEST).exists():
        raise UserError(
            f"{str(target)!r} holds a prepared corpus already; give another folder or remove it"
        )
    target.mkdir(parents=True, exist_ok=True)
    shards, num_documents, num_bytes = [], 0, 0
    documents = iter(documents)
    for first in documents:
        path = target / shard_name(len(shards))
        with ShardWriter(path, dtype_of(tokenizer.vocab_size)) as writer:
            for text in itertools.chain([first], documents):
                writer.write(tokenizer.encode_batch([text], [True]))
                num_documents, num_bytes = num_documents + 1, num_bytes + len(text.encode())
                if writer.tokens >= tokens_per_shard:
                    break
            shards.append(writer.close())
    manifest = make_manifest(split, tokenizer, shards, num_documents, num_bytes)
    write_manifest(target, manifest)
    return manifest


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"tokens-{number:05d}.bin"


def make_manifest(
    split: str, tokenizer, shards: Sequence[Shard], documents: int, num_bytes: int, **more
) -> Manifest:
    """The manifest of complete shards."""
    return Manifest(
        split=split,
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        end_of_text_token=tokenizer.end_of_text_token,
        dtype=dtype_of(tokenizer.vocab_size),
        tokens=sum(shard.tokens for shard in shards),
        documents=documents,
        bytes=num_bytes,
        shards=tuple(shards),
        **more,
    )


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes `folder/manifest.json`, whole or not at all."""
    write_whole(folder / MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")


def is_prepared(folder: str) -> bool:
    """Whether a folder holds token shards rather than text.

    Raises:
        UserError: it is a split's own folder, or its preparation is not finished.
    """
    root = pathlib.Path(folder)
    if (root / MANIFEST).is_file():
        raise UserError(
            f"data path {folder!r} is one split of a prepared corpus; give the folder above it, "
            f"{str(root.parent)!r}"
        )
    if any((root / split / MANIFEST).is_file() for split in SPLITS):
        return True
    for split in SPLITS:
        if _is_unfinished(root / split):
            raise UserError(
                f"data path {folder!r}: the preparation of {split!r} is not finished; the same "
                f"`{python()} -m xlstm_jax.data.prepare` command goes on with it"
            )
    return False


def _is_unfinished(folder: pathlib.Path) -> bool:
    """Whether a split's folder without a manifest is that of a preparation."""
    return (folder / LOCK).exists() and ((folder / PLAN).exists() or any(folder.glob("tokens-*")))


def read_manifest(folder: str, split: str) -> Manifest:
    """The manifest of a prepared split; raises `UserError` where it is missing or damaged."""
    path = pathlib.Path(folder) / split / MANIFEST
    if not path.is_file():
        if _is_unfinished(path.parent):
            raise UserError(
                f"the preparation of {str(path.parent)!r} is not finished; the same command goes "
                f"on with it"
            )
        raise UserError(
            f"prepared data {folder!r} has no split {split!r}: {path} does not exist; prepare it"
        )
    try:
        values = json.loads(path.read_text())
        values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
        values["inputs"] = tuple(Input(**entry) for entry in values["inputs"])
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the data again") from None
    if manifest.format != FORMAT:
        raise UserError(
            f"{path} has format {manifest.format!r}, this version reads {FORMAT}; prepare the data "
            f"again"
        )
    if problem := _contradiction(manifest):
        raise UserError(f"{path} is damaged ({problem}); prepare the data again")
    if not manifest.tokens:
        raise UserError(f"{path} names no tokens: the split is empty; prepare the data again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """What in a manifest can't be true, in words."""
    ids = {"uint16": 1 << 16, "uint32": 1 << 32}.get(manifest.dtype)
    if ids is None:
        return f"dtype is {manifest.dtype!r}, it must be 'uint16' or 'uint32'"
    if not 0 <= manifest.end_of_text < manifest.vocab_size <= ids:
        return (
            f"end_of_text {manifest.end_of_text}, vocab_size {manifest.vocab_size} and dtype "
            f"{manifest.dtype} do not fit together"
        )
    if (total := sum(shard.tokens for shard in manifest.shards)) != manifest.tokens:
        return f"tokens is {manifest.tokens:,}, its shards have {total:,}"
    return None


def open_shards(folder: str, manifest: Manifest, *, hashed: int = CHECKED) -> ShardedTokens:
    """The token stream of a split.

    Every shard's size is checked. Of their contents as much is hashed as fits into `hashed` bytes,
    the files that were written last before the others: a small split is checked whole, and of a
    large one the shard that somebody changed. `verify` reads everything.

    Raises:
        UserError: a shard is missing, or is not what the manifest says.
    """
    itemsize = np.dtype(manifest.dtype).itemsize
    root = pathlib.Path(folder) / manifest.split
    found = []
    for shard in manifest.shards:
        path = root / shard.file
        status = path.stat() if path.is_file() else None
        size = status and status.st_size
        if size != shard.tokens * itemsize:
            what = "missing" if size is None else f"{size} bytes long"
            raise UserError(
                f"shard {path} is {what}, its manifest says {shard.tokens * itemsize} bytes; "
                f"prepare it again"
            )
        found.append((max(status.st_mtime_ns, status.st_ctime_ns), size, shard))
    for _, size, shard in sorted(found, key=lambda entry: entry[0], reverse=True):
        if size > hashed:
            continue
        hashed -= size
        if _hash(root / shard.file) != shard.sha256:
            raise UserError(
                f"shard {root / shard.file} is damaged: its content is not what was prepared (its "
                f"sha256 is another); bring back the file, or prepare the split again"
            )
    paths = [root / shard.file for shard in manifest.shards]
    lengths = [shard.tokens for shard in manifest.shards]
    return ShardedTokens(paths, lengths, manifest.dtype, manifest.end_of_text)


def verify(
    folder: str, manifest: Manifest, progress: Callable[[], object] = lambda: None
) -> list[str]:
    """The files whose content is not what the manifest says; `progress` is called after each
    file.
    """
    damaged = []
    for shard in manifest.shards:
        if _hash(pathlib.Path(folder) / manifest.split / shard.file) != shard.sha256:
            damaged.append(shard.file)
        progress()
    return damaged


def _hash(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
