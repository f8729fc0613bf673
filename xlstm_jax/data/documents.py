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

# Bytes of a file that are in memory at a time. Of a compressed file fewer, because they may expand
# to a thousand times as many.
BLOCK = 1 << 20
COMPRESSED_BLOCK = 1 << 14
# The longest line of JSON that is read, in bytes. While it is parsed, a line is in memory three
# times (bytes, text, value), and Python keeps up to four bytes for a character.
LONGEST_LINE = 96 << 20
ROWS = 64  # of a parquet file in memory at a time
MISSING_EXTRA = "{} needs the extra `data`: " + install("data")


class Piece(NamedTuple):
    """A part of a document's text; `last` says whether the document ends with it."""

    text: str
    last: bool


class Damage(NamedTuple):
    """Something that can't be read. Its kind is a key of `KINDS`.

    Attributes:
        records: how many are lost by it, as far as that is known.
    """

    line: int
    kind: str
    detail: str
    records: int = 1


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
MARK_OF_UTF8 = "\ufeff".encode()  # a byte-order mark, as Windows programs put before UTF-8
MISSING = object()
OnDamage = Callable[[Damage], None]
OnRead = Callable[[int], None]


class BrokenCompressionError(Exception):
    """The content of a compressed file can't be decompressed."""


def read_documents(
    path: pathlib.Path,
    field: str,
    join: bool,
    on_damage: OnDamage,
    on_read: OnRead = lambda num_bytes: None,
) -> Iterator[Piece]:
    """The documents of a file, in order: its records' `field`, or the whole text of a .txt file.

    Args:
        field: name of the text in a record of JSON or parquet; "doc.text" is the field "text" of
            the record that the field "doc" holds, unless there is a field of just that name.
        join: all records of the file are one document, as in the parquet files of WikiText, whose
            records are lines.
        on_read: told how many bytes of the file were read since the last call.

    Raises:
        UserError: a suffix that is not in `SUFFIXES`, or a package is missing.
        OSError: the file can't be read. That is no damage: the next attempt may read it.
    """
    name = path.name.lower()
    if name.endswith(".txt"):
        return _read_text(path, on_damage, on_read)
    if name.endswith(".parquet"):
        records = _parquet_records(path, field, on_damage, on_read)
    elif name.endswith(SUFFIXES):
        records = _json_records(path, field, on_damage, on_read)
    else:
        raise UserError(
            f"{str(path)!r} has no suffix that can be read; these can: {', '.join(SUFFIXES)}"
        )
    return _joined(records, on_damage) if join else _separate(records, on_damage)


def _separate(records: Iterator[tuple[int, str]], on_damage: OnDamage) -> Iterator[Piece]:
    for line, text in records:
        if text:
            yield Piece(text, True)
        else:
            on_damage(Damage(line, "empty", ""))


def _joined(records: Iterator[tuple[int, str]], on_damage: OnDamage) -> Iterator[Piece]:
    """All records as one document, to which empty ones add nothing."""
    count, found = 0, False
    for _, text in records:
        count += 1
        if text:
            found = True
            yield Piece(text, False)
    if found:
        yield Piece("", True)
    elif count:
        on_damage(Damage(1, "empty", "all records are", count))


def field_of(record: Any, field: str) -> Any:
    """The value of a field, "outer.inner" being a field of a field; else `MISSING`."""
    if isinstance(record, dict) and field in record:
        return record[field]
    for name in field.split("."):
        if not isinstance(record, dict) or name not in record:
            return MISSING
        record = record[name]
    return record


def _json_records(
    path: pathlib.Path, field: str, on_damage: OnDamage, on_read: OnRead
) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_lines(path, on_damage, on_read), 1):
        if line is None:
            on_damage(Damage(number, "length", ""))
            continue
        line = line.removeprefix(MARK_OF_UTF8)  # of the file, or of one that was appended to it
        if line.isspace() or not line:
            continue
        try:
            record = _parsed(line.decode())
        except UnicodeDecodeError as error:
            on_damage(Damage(number, "utf-8", f"byte {error.start + 1}"))
            continue
        except (json.JSONDecodeError, RecursionError) as error:
            on_damage(Damage(number, "json", str(error)))
            continue
        del line
        text = field_of(record, field)
        if not isinstance(text, str):
            on_damage(Damage(number, "field", _what_is_there(record, field)))
        elif _is_unicode(text):
            yield number, text
        else:
            on_damage(Damage(number, "utf-8", "half a surrogate pair"))


def _parsed(text: str) -> Any:
    """A value of JSON, whole numbers of any length included."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python makes no number of more than 4,300 digits; here none is needed
        return json.loads(text, parse_int=lambda digits: 0)


def _what_is_there(record: Any, field: str) -> str:
    if not isinstance(record, dict):
        return f"no record but {type(record).__name__}"
    if (value := field_of(record, field)) is not MISSING:
        return f"{field!r} is {type(value).__name__}"
    names = []
    for name, value in sorted(record.items()):
        names += (
            [f"{name}.{inner}" for inner in sorted(value)] if isinstance(value, dict) else [name]
        )
    return f"no {field!r} among {', '.join(names[:8]) or 'nothing'}"


def _is_unicode(text: str) -> bool:
    """Whether the text can be UTF-8: JSON can write halves of surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: pathlib.Path, on_damage: OnDamage, on_read: OnRead) -> Iterator[bytes | None]:
    """Lines without their ends; None in place of one that is too long. Broken compression ends
    them.
    """
    pending, size, number = [], 0, 1
    try:
        for block in _blocks(path, on_read):
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
    except BrokenCompressionError as error:
        on_damage(Damage(number, "compression", str(error)))
        return
    if size:
        yield None if size > LONGEST_LINE else b"".join(pending)


def _blocks(path: pathlib.Path, on_read: OnRead) -> Iterator[bytes]:
    """A file's bytes, decompressed as its suffix says.

    Raises:
        BrokenCompressionError: that can't be done.
    """
    name = path.name.lower()
    if name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise UserError(MISSING_EXTRA.format("reading .zst")) from None
        # The largest window that the `zstd` program decompresses without its option --long.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        yield from _decompressed(
            path, decompressor.decompressobj, zstandard.ZstdError, b"", on_read
        )
    elif name.endswith(".gz"):
        # wbits=31 tells zlib to read the gzip format and to check its checksum. Zeros at the end
        # of a file are padding, which the `gzip` program passes over, too.
        yield from _decompressed(
            path, lambda: zlib.decompressobj(wbits=31), zlib.error, b"\0", on_read
        )
    else:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
                on_read(len(block))


def _decompressed(
    path: pathlib.Path,
    new_frame: Callable[[], Any],
    error_type: type[Exception],
    padding: bytes,
    on_read: OnRead,
) -> Iterator[bytes]:
    """The frames (members) of a file, one after another, all that can be had before an error."""
    frame = None
    if not path.stat().st_size:
        raise BrokenCompressionError("the file has no bytes at all")
    with open(path, "rb") as file:
        while compressed := file.read(COMPRESSED_BLOCK):
            on_read(len(compressed))
            while compressed:
                if frame is None and not (compressed := compressed.lstrip(padding)):
                    break
                frame = frame or new_frame()
                try:
                    block = frame.decompress(compressed)
                except error_type as error:
                    raise BrokenCompressionError(str(error)) from None
                if block:
                    yield block
                compressed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise BrokenCompressionError("the file ends in the middle of compressed data")


def _parquet_records(
    path: pathlib.Path, field: str, on_damage: OnDamage, on_read: OnRead
) -> Iterator[tuple[int, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(MISSING_EXTRA.format("reading .parquet")) from None
    row = rows = told = 0
    size = path.stat().st_size
    try:
        # With a buffer and without pre_buffer a column is read piece by piece as it is needed, and
        # not as a whole, which may be gigabytes.
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
            rows = file.metadata.num_rows
            if problem := _no_text_column(file.schema_arrow, field):
                if rows:
                    on_damage(Damage(1, "field", problem, rows))
                return
            for batch in file.iter_batches(ROWS, columns=[field], use_threads=False):
                for value in batch.column(0):
                    row += 1
                    text = _text_in(value, batch.schema.names[0], field)
                    if isinstance(text, Damage):
                        on_damage(text._replace(line=row))
                    else:
                        yield row, text
                on_read(size * row // rows - told)
                told = size * row // rows
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system could not read the file; pyarrow's own errors have no number
        lost = max(rows - row, 1)
        on_damage(Damage(row + 1, "parquet", str(error).splitlines()[0], lost))


def _no_text_column(schema: Any, field: str) -> str | None:
    """What is wrong with a field of a parquet file, in words; None: it can hold text."""
    import pyarrow.types

    names = list(schema.names)
    if names.count(field) > 1:
        return f"{names.count(field)} columns are named {field!r}"
    path = [field] if field in names else field.split(".")
    kind = schema.field(path[0]).type if names.count(path[0]) == 1 else None
    for name in path[1:]:
        inner = pyarrow.types.is_struct(kind) and kind.get_field_index(name) >= 0
        kind = kind.field(name).type if inner else None
    if kind is None:
        return f"no {field!r} among {', '.join(_columns(schema)[:8])}"
    plain = getattr(kind, "storage_type", kind)
    plain = plain.value_type if pyarrow.types.is_dictionary(plain) else plain
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    fits = any(
        getattr(pyarrow.types, f"is_{test}", lambda kind: False)(plain)  # views are new in 16.0
        for test in tests
    )
    return None if fits else f"{field!r} is {kind}"


def _columns(schema: Any) -> list[str]:
    """Names of a schema's columns, those in structs with dots."""
    names = []
    for column in schema:
        inner = _columns(column.type) if hasattr(column.type, "get_field_index") else []
        names += [f"{column.name}.{name}" for name in inner] or [column.name]
    return names


def _text_in(value: Any, column: str, field: str) -> str | Damage:
    """The text of a parquet value, which may be bytes or lie in structs."""
    try:
        found = value.as_py()
        text = found if column == field else field_of({column: found}, field)
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        return Damage(0, "utf-8", f"byte {error.start + 1}")
    if text is None or text is MISSING:
        return Damage(0, "field", f"{field!r} is null")
    return text


def _read_text(path: pathlib.Path, on_damage: OnDamage, on_read: OnRead) -> Iterator[Piece]:
    """A text file as one document, looked through first: it is no text when one byte of it is not.

    A byte-order mark before it is no part of the text.
    """
    new_decoder, line = codecs.getincrementaldecoder("utf-8-sig"), 1
    decoder, found = new_decoder(), False
    try:
        for block in _blocks(path, lambda num_bytes: None):
            found = bool(decoder.decode(block)) or found
            line += block.count(b"\n")
        found = bool(decoder.decode(b"", final=True)) or found
    except UnicodeDecodeError as error:
        on_damage(
            Damage(
                line + error.object.count(b"\n", 0, error.start), "utf-8", "the file is left out"
            )
        )
        return
    if not found:
        on_damage(Damage(1, "empty", ""))
        return
    decoder = new_decoder()
    for block in _blocks(path, on_read):
        yield Piece(decoder.decode(block), False)
    yield Piece("", True)
