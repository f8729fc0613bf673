"""The tokenizer of a prepared folder: found by path or on the hub, and kept beside the shards."""

import dataclasses
import pathlib
import tempfile

from xlstm_jax.data import hub
from xlstm_jax.data.jobs import has_begun
from xlstm_jax.data.shards import MANIFEST, SPLITS
from xlstm_jax.data.tokenizer import ByteTokenizer, Tokenizer, tokenizer_of, with_end_of_text
from xlstm_jax.data.writing import explained, write_whole
from xlstm_jax.errors import UserError

TOKENIZER = "tokenizer.json"


def install_tokenizer(name: str, output: pathlib.Path, end_of_text: str | None = None) -> Tokenizer:
    """Loads the tokenizer, which from now on lies in the prepared folder as tokenizer.json, unless
    it is 'byte'.

    `end_of_text` names the token that ends a text; the installed file then says so.

    Raises:
        UserError: it can't be had, it has no such token, or the folder holds another one.
    """
    with explained(output):
        if name == "byte":
            if end_of_text:
                raise UserError(
                    "--end-of-text is for tokenizer files; bytes have a token of theirs"
                )
            output.mkdir(parents=True, exist_ok=True)
            return ByteTokenizer()
        tokenizer, content = _find_tokenizer(name, end_of_text)
        output.mkdir(parents=True, exist_ok=True)
        installed = output / TOKENIZER
        found = installed.read_bytes() if installed.exists() else None
        if found != content:
            if found is not None and any(_is_begun(output / split) for split in SPLITS):
                raise UserError(
                    f"{str(output)!r} was prepared with another tokenizer than {name!r}, or with "
                    f"another --end-of-text; give another --output"
                )
            write_whole(installed, content)
    return tokenizer


def _is_begun(folder: pathlib.Path) -> bool:
    return (folder / MANIFEST).exists() or has_begun(folder)


def _find_tokenizer(name: str, end_of_text: str | None) -> tuple[Tokenizer, bytes]:
    """A tokenizer by its path, its folder or its name on the hub; and its file's content."""
    path = pathlib.Path(name)
    path = path / TOKENIZER if (path / TOKENIZER).is_file() else path
    if path.is_file():
        content, short, where = path.read_bytes(), path.stem, str(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            content = hub.download_tokenizer(name, pathlib.Path(folder)).read_bytes()
        short, where = name, name
    if end_of_text is not None:
        marked = with_end_of_text(content, where, end_of_text)
        if _end_of_text_found(content, where) != end_of_text:
            content = marked
    return dataclasses.replace(tokenizer_of(content, where), name=short), content


def _end_of_text_found(content: bytes, path: str) -> str | None:
    """The name of the token that ends a text where nobody says which; None: none is known."""
    try:
        return tokenizer_of(content, path).end_of_text_token
    except UserError:
        return None
