"""Documents of plain text: the embedded corpus, a file, or a folder."""

import pathlib
import platform
import re
import sysconfig
from typing import NamedTuple

from xlstm_jax.data.sources import files_below
from xlstm_jax.errors import UserError
from xlstm_jax.installation import module, shell_line
from xlstm_jax.progress import counted

STDLIB = "stdlib"
NOT_STDLIB = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "__pycache__",
}
# Suffixes of files that are no text: they are not opened. Every other file in a folder is read, and
# left out if it is not UTF-8.
BINARY = {
    ".bin",
    ".bz2",
    ".exe",
    ".gif",
    ".gz",
    ".ico",
    ".jpeg",
    ".jpg",
    ".mp3",
    ".mp4",
    ".npy",
    ".npz",
    ".o",
    ".pdf",
    ".png",
}
BINARY |= {".pyc", ".so", ".tar", ".webp", ".whl", ".xz", ".zip", ".zst"}
# What the folders that the configs name are prepared from: data set and tokenizer on the Hugging
# Face hub.
SOURCES = {
    "slimpajama-gpt2": ("cerebras/SlimPajama-627B", "gpt2"),
    "dclm-neox": ("mlfoundations/dclm-baseline-1.0", "EleutherAI/gpt-neox-20b"),
}


class Document(NamedTuple):
    """One text and where it came from."""

    path: str  # relative to the corpus
    text: str


class Corpus(NamedTuple):
    """The non-empty documents below a path, and the names of the files that are no text."""

    documents: list[Document]
    left_out: list[str]


def read_corpus(path: str) -> list[Document]:
    """The documents of `open_corpus`."""
    return open_corpus(path).documents


def open_corpus(path: str) -> Corpus:
    """The non-empty documents of "stdlib", of a file or of a folder, sorted by path.

    "stdlib" is the Python source of the standard library on this machine, without tests, installed
    packages and `encodings/`. In a folder links are followed, hidden names are passed over.

    Raises:
        UserError: nothing there, no text in it, a file that can't be read, a single file that is
            not UTF-8 text, or a folder with prepared tokens somewhere below.
    """
    if not path:
        raise UserError(f"config key data.path is empty; give {STDLIB!r}, a text file, or a folder")
    root = pathlib.Path(sysconfig.get_path("stdlib") if path == STDLIB else path)
    left_out: list[str] = []
    if root.is_file():
        document = _read(root, root.name)
        if document is None:
            raise UserError(
                f"data path {path!r} is no text: it is not UTF-8; give a text file, or a folder of "
                f"text"
            )
        documents = [document]
    elif root.is_dir():
        documents = []
        for name in _stdlib_files(root) if path == STDLIB else _text_files(path, root):
            binary = pathlib.PurePath(name).suffix.lower() in BINARY
            document = None if binary else _read(root / name, name)
            if document is None:
                left_out.append(name)
            else:
                documents.append(document)
    else:
        source, tokenizer = SOURCES.get(root.name, ("SOURCE", "TOKENIZER"))
        given = {"source": source, "tokenizer": tokenizer, "output": path}
        raise UserError(
            f"data path {path!r} does not exist; prepare token shards there with "
            f"`{shell_line(module('data.prepare'), **given)}`, or point data.path to text"
        )
    documents = [document for document in documents if document.text]
    if not documents:
        raise UserError(
            f"data path {path!r} is empty: no text in it; give a text file, or a folder with text"
        )
    return Corpus(documents, left_out)


def split_corpus(documents: list[Document], split: str, holdout_every: int) -> list[Document]:
    """The documents of "train" or "validation": every `holdout_every`-th file is held out.

    With fewer files than that the end of each file is held out instead, one part in
    `holdout_every`.
    """
    validation = split == "validation"
    if len(documents) >= holdout_every:
        return [
            document
            for k, document in enumerate(documents, 1)
            if (k % holdout_every == 0) == validation
        ]
    parts = []
    for path, text in documents:
        cut = len(text) - len(text) // holdout_every
        parts.append(Document(path, text[cut:] if validation else text[:cut]))
    return [part for part in parts if part.text]


def describe(path: str, documents: list[Document], num_bytes: int) -> str:
    """One line for the terminal."""
    python = f" of Python {platform.python_version()}" if path == STDLIB else ""
    return f"{path}{python}: {counted(len(documents), 'file')}, {counted(num_bytes, 'byte')}"


def describe_rest(path: str, left_out: list[str]) -> str | None:
    """One line about the files that are no text; None where there are none."""
    if not left_out:
        return None
    files = counted(len(left_out), "file")
    some = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
    return f"left out of {path}: {files} that are no UTF-8 text ({some})"


def _stdlib_files(root: pathlib.Path) -> list[str]:
    """Relative to the folder, sorted."""
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    return sorted(name.as_posix() for name in names if not NOT_STDLIB.intersection(name.parts))


def _text_files(path: str, root: pathlib.Path) -> list[str]:
    """All files but hidden ones, relative to the folder, sorted."""
    names = sorted(files_below(root))
    for name in names:
        if re.search(r"(^|/)tokens-\d+\.bin$", name):
            raise UserError(
                f"data path {path!r} is no folder of text: {name!r} in it is a shard of prepared "
                f"tokens; give the folder that was prepared, or one that has text alone"
            )
    return names


def _read(file: pathlib.Path, name: str) -> Document | None:
    """None where the file is not UTF-8 text. A byte-order mark before it is no part of it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{str(file)!r} can't be read: {error.strerror}") from None
    if b"\0" in content:
        return None
    try:
        return Document(name, content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None
