"""Token shards: flat files of unsigned integers and a manifest, the form in which a prepared corpus lies on disk.

A prepared folder holds `train/`, `validation/`, each with `manifest.json` and its shards, and `tokenizer.json` where the tokenizer is a
file. A split's token stream is its shards in the manifest's order; every document ends with the end-of-text token.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from xlstm_jax.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


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
    format: int = FORMAT


class ShardedTokens:
    """The token stream of several memory-mapped shards; `stream[start:stop]` reads across their borders."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in self._arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"a token stream is read in steps of 1, not {step}")
        parts = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[shard]) - len(self._arrays[shard])
            end = min(stop, int(self._ends[shard]))
            parts.append(self._arrays[shard][start - first : end - first])
            start, shard = end, shard + 1
        return np.concatenate(parts) if parts else np.zeros(0, self._arrays[0].dtype)


def write_shards(
    folder: pathlib.Path, split: str, tokenizer, documents: Iterable[str], tokens_per_shard: int = 1 << 27
) -> Manifest:
    """Tokenizes documents into `folder/split/`; the manifest is written last, so that a killed run leaves no half of a corpus.

    `tokenizer` is one of `xlstm_jax.data.tokenizer`; an existing manifest is not overwritten (`UserError`).
    """
    target = pathlib.Path(folder) / split
    if (target / MANIFEST).exists():
        raise UserError(f"{str(target)!r} holds a prepared corpus already; give another folder or remove it")
    target.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    shards, pending, num_documents, num_bytes = [], [], 0, 0

    def flush():
        tokens = np.concatenate(pending)
        name = f"tokens-{len(shards):05d}.bin"
        (target / name).write_bytes(tokens.tobytes())
        shards.append(Shard(name, len(tokens), hashlib.sha256(tokens.tobytes()).hexdigest()))
        pending.clear()

    for text in documents:
        pending.append(np.append(tokenizer.encode(text), tokenizer.end_of_text).astype(dtype))
        num_documents, num_bytes = num_documents + 1, num_bytes + len(text.encode())
        if sum(map(len, pending)) >= tokens_per_shard:
            flush()
    if pending:
        flush()
    manifest = Manifest(
        split=split,
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        tokens=sum(shard.tokens for shard in shards),
        documents=num_documents,
        bytes=num_bytes,
        shards=tuple(shards),
    )
    (target / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
    return manifest


def is_prepared(folder: str) -> bool:
    """Whether a folder holds token shards rather than text; `UserError` where it is a split's own folder."""
    root = pathlib.Path(folder)
    if (root / MANIFEST).is_file():
        raise UserError(f"data path {folder!r} is one split of a prepared corpus; give the folder above it, {str(root.parent)!r}")
    return any((root / split / MANIFEST).is_file() for split in ("train", "validation"))


def read_manifest(folder: str, split: str) -> Manifest:
    """The manifest of a prepared split; raises `UserError` where it is missing or damaged."""
    path = pathlib.Path(folder) / split / MANIFEST
    if not path.is_file():
        raise UserError(f"prepared data {folder!r} has no split {split!r}: {path} does not exist; prepare it")
    try:
        values = json.loads(path.read_text())
        values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the data again") from None
    if manifest.format != FORMAT:
        raise UserError(f"{path} has format {manifest.format!r}, this version reads {FORMAT}; prepare the data again")
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
        return f"end_of_text {manifest.end_of_text}, vocab_size {manifest.vocab_size} and dtype {manifest.dtype} do not fit together"
    if (total := sum(shard.tokens for shard in manifest.shards)) != manifest.tokens:
        return f"tokens is {manifest.tokens:,}, its shards have {total:,}"
    return None


def open_shards(folder: str, manifest: Manifest) -> list[np.ndarray]:
    """The memory-mapped shards; every shard's size is checked (`UserError`), its hash by `verify` only."""
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    arrays = []
    for shard in manifest.shards:
        path = pathlib.Path(folder) / manifest.split / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.tokens * dtype.itemsize:
            found = "missing" if size is None else f"{size} bytes long"
            raise UserError(f"shard {path} is {found}, its manifest says {shard.tokens * dtype.itemsize} bytes; prepare it again")
        arrays.append(np.memmap(path, dtype, mode="r"))
    return arrays


def verify(folder: str, manifest: Manifest) -> list[str]:
    """The files whose content is not what the manifest says."""
    return [
        shard.file
        for shard in manifest.shards
        if hashlib.sha256((pathlib.Path(folder) / manifest.split / shard.file).read_bytes()).hexdigest() != shard.sha256
    ]
