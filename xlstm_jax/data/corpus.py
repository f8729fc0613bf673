"""Documents of plain text: the embedded corpus, a file, or a folder."""

import pathlib
import platform
import sysconfig
from typing import NamedTuple

from xlstm_jax.errors import UserError
from xlstm_jax.installation import python

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
# Suffixes that are never text: not even opened. Everything else in a folder is tried, and left out
# if it is not UTF-8.
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


def read_corpus(path: str) -> list[Document]:
    """The non-empty documents of "stdlib", of a file or of a folder, sorted by path.

    "stdlib" is the Python source of the standard library on this machine, without tests, installed
    packages and `encodings/`.

    Raises:
        UserError: nothing there, no text in it, or a single file that is not UTF-8 text.
    """
    if not path:
        raise UserError(f"config key data.path is empty; give {STDLIB!r}, a text file, or a folder")
    root = pathlib.Path(sysconfig.get_path("stdlib") if path == STDLIB else path)
    if root.is_file():
        document = _read(root, root.name)
        if document is None:
            raise UserError(
                f"data path {path!r} is no text: it is not UTF-8; give a text file, or a folder of "
                f"text"
            )
        documents = [document]
    elif root.is_dir():
        files = sorted(
            _stdlib_files(root) if path == STDLIB else _text_files(root),
            key=lambda file: file.as_posix(),
        )
        documents = [
            document
            for file in files
            if (document := _read(file, file.relative_to(root).as_posix())) is not None
        ]
    else:
        source, tokenizer = SOURCES.get(root.name, ("SOURCE", "TOKENIZER"))
        raise UserError(
            f"data path {path!r} does not exist; prepare token shards there with "
            f"`{python()} -m xlstm_jax.data.prepare "
            f"--source={source} --tokenizer={tokenizer} --output={path}`, or point data.path to "
            f"text"
        )
    documents = [document for document in documents if document.text]
    if not documents:
        raise UserError(
            f"data path {path!r} is empty: no text in it; give a text file, or a folder with text"
        )
    return documents


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
    return f"{path}{python}: {len(documents):,} files, {num_bytes:,} bytes"


def _stdlib_files(root: pathlib.Path) -> list[pathlib.Path]:
    return [
        file
        for file in root.rglob("*.py")
        if not NOT_STDLIB.intersection(file.relative_to(root).parts)
    ]


def _text_files(root: pathlib.Path) -> list[pathlib.Path]:
    """All files but hidden ones and those of binary suffixes."""
    return [
        file
        for file in root.rglob("*")
        if file.is_file()
        and file.suffix.lower() not in BINARY
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]


def _read(file: pathlib.Path, name: str) -> Document | None:
    """None where the file is not UTF-8 text."""
    content = file.read_bytes()
    if b"\0" in content:
        return None
    try:
        return Document(name, content.decode())
    except UnicodeDecodeError:
        return None
