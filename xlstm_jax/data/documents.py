"""Documents out of files: .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .txt, as a stream of pieces
in bounded memory.

What can't be read is handed to `on_damage` with its line (for parquet: its row), counting from 1;
everything else is yielded.
"""

import codecs
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xlstm_jax.errors import UserError
from xlstm_jax.installation import install

BLOCK = 1 << 20  # bytes of a file in memory at a time
COMPRESSED_BLOCK = 1 << 14  # small, because it may expand a thousandfold
LONGEST_LINE = 96 << 20  # bytes; a line is in memory three times, with up to four bytes a character
ROWS = 64  # of a parquet file in memory at a time
MISSING_EXTRA = "{} needs the extra `data`: " + install("data")


class Piece(NamedTuple):
    """A part of a document's text; `last` says whether the document ends with it."""

    text: str
    last: bool


class Damage(NamedTuple):
    """Something that can't be read. Its kind is a key of `KINDS`."""

    line: int
    kind: str
    detail: str


KINDS = {
    "compression": "broken compression: the rest of the file is lost",
    "json": "invalid JSON",
    "utf-8": "invalid UTF-8",
    "field": "the text field is missing or is no text",
    "empty": "empty text",
    "length": f"a line longer than {LONGEST_LINE >> 20} MiB",
    "parquet": "broken parquet: the rest of the file is lost",
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".parquet", ".txt")
OnDamage = Callable[[Damage], None]


def read_documents(
    path: pathlib.Path, field: str, join: bool, on_damage: OnDamage
) -> Iterator[Piece]:
    """The documents of a file, in order: its records' `field`, or the whole text of a .txt file.

    Args:
        field: name of the text in a record of JSON or parquet.
        join: all records of the file are one document, as in the parquet files of WikiText, whose
            records are lines.

    Raises:
        UserError: a suffix that is not in `SUFFIXES`, or a package is missing.
    """
    name = path.name.lower()
    if name.endswith(".txt"):
        return _read_text(path, on_damage)
    if name.endswith(".parquet"):
        records = _parquet_records(path, field, on_damage)
    elif name.endswith(SUFFIXES):
        records = _json_records(path, field, on_damage)
    else:
        raise UserError(
            f"{str(path)!r} has no suffix that can be read; these can: {', '.join(SUFFIXES)}"
        )
    return _joined(records) if join else _separate(records, on_damage)


def _separate(records: Iterator[tuple[int, str]], on_damage: OnDamage) -> Iterator[Piece]:
    for line, text in records:
        if text:
            yield Piece(text, True)
        else:
            on_damage(Damage(line, "empty", ""))


def _joined(records: Iterator[tuple[int, str]]) -> Iterator[Piece]:
    found = False
    for _, text in records:  # an empty record adds nothing to a text
        found = True
        yield Piece(text, False)
    if found:
        yield Piece("", True)


def _json_records(path: pathlib.Path, field: str, on_damage: OnDamage) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path, on_damage), 1):
        if line is None:
            on_damage(Damage(number, "length", ""))
            continue
        if line.isspace() or not line:
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            on_damage(Damage(number, "utf-8", f"byte {error.start + 1}"))
            continue
        except (json.JSONDecodeError, RecursionError) as error:
            on_damage(Damage(number, "json", str(error)))
            continue
        del line
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            on_damage(Damage(number, "field", _what_is_there(record, field)))
        elif _is_unicode(text):
            yield number, text
        else:
            on_damage(Damage(number, "utf-8", "half a surrogate pair"))


def _what_is_there(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        return f"no record but {type(record).__name__}"
    if field in record:
        return f"{field!r} is {type(record[field]).__name__}"
    return f"no {field!r} among {', '.join(sorted(record)[:8]) or 'nothing'}"


def _is_unicode(text: str) -> bool:
    """Whether the text can be UTF-8: JSON can write halves of surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: pathlib.Path, on_damage: OnDamage) -> Iterator[bytes | None]:
    """Lines without their ends; None in place of one that is too long. Broken compression ends
    them.
    """
    pending, size, number = [], 0, 1
    try:
        for block in _blocks(path):
            *ended, rest = block.split(b"\n")
            for line in ended:
                too_long = size + len(line) > LONGEST_LINE
                yield None if too_long else b"".join([*pending, line]) if pending else line
                pending, size, number = [], 0, number + 1
            size += len(rest)
            if size <= LONGEST_LINE:
                pending.append(rest)
            else:
                pending.clear()
    except (OSError, EOFError) as error:
        on_damage(Damage(number, "compression", str(error)))
        return
    if size:
        yield None if size > LONGEST_LINE else b"".join(pending)


def _blocks(path: pathlib.Path) -> Iterator[bytes]:
    """A file's bytes, decompressed as its suffix says; EOFError or OSError where that fails."""
    name = path.name.lower()
    if name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise UserError(MISSING_EXTRA.format("reading .zst")) from None
        # what `zstd` itself takes without --long=31
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        yield from _decompressed(path, decompressor.decompressobj, zstandard.ZstdError)
    elif name.endswith(".gz"):
        # 31: gzip, with its checksum
        yield from _decompressed(path, lambda: zlib.decompressobj(wbits=31), zlib.error)
    else:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block


def _decompressed(
    path: pathlib.Path, new_frame: Callable[[], Any], error_type: type[Exception]
) -> Iterator[bytes]:
    """The frames (members) of a file, one after another, all that can be had before an error."""
    frame = None
    try:
        with open(path, "rb") as file:
            while compressed := file.read(COMPRESSED_BLOCK):
                while compressed:
                    frame = frame or new_frame()
                    if block := frame.decompress(compressed):
                        yield block
                    compressed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except error_type as error:
        raise OSError(str(error)) from None
    if frame is not None:
        raise EOFError("the file ends in the middle of compressed data")


def _parquet_records(
    path: pathlib.Path, field: str, on_damage: OnDamage
) -> Iterator[tuple[int, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(MISSING_EXTRA.format("reading .parquet")) from None
    row = 0
    try:
        # Buffered and not pre-buffered: a column chunk is read as it is used, not at once.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
            schema = file.schema_arrow
            kind = schema.field(field).type if field in schema.names else None
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                found = (
                    f"no {field!r} among {', '.join(schema.names[:8])}"
                    if kind is None
                    else f"{field!r} is {kind}"
                )
                on_damage(Damage(1, "field", found))
                return
            for batch in file.iter_batches(ROWS, columns=[field], use_threads=False):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        on_damage(Damage(row, "utf-8", f"byte {error.start + 1}"))
                        continue
                    if text is None:
                        on_damage(Damage(row, "field", f"{field!r} is null"))
                    else:
                        yield row, text
    except (pyarrow.ArrowException, OSError) as error:
        on_damage(Damage(row + 1, "parquet", str(error).splitlines()[0]))


def _read_text(path: pathlib.Path, on_damage: OnDamage) -> Iterator[Piece]:
    """A text file as one document, looked through first: it is no text when one byte of it is not."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    try:
        for block in _blocks(path):
            decoder.decode(block)
            line += block.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        on_damage(
            Damage(
                line + error.object.count(b"\n", 0, error.start), "utf-8", "the file is left out"
            )
        )
        return
    if not path.stat().st_size:
        on_damage(Damage(1, "empty", ""))
        return
    decoder.reset()
    for block in _blocks(path):
        yield Piece(decoder.decode(block), False)
    yield Piece("", True)
