"""Files of records: JSON lines, or CSV with the names in its first line."""

import csv
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from xlstm_jax.errors import UserError, reason


def records(path: pathlib.Path, name: str | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each record and where it stands, as "runs.jsonl, line 3". Empty lines are passed over.

    Args:
        name: of the file in what is said; its path by default.

    Raises:
        UserError: the file can't be read, or a line is no record.
    """
    name = name or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} can't be read: {reason(error)}") from None
    if path.suffix.lower() == ".csv":
        for number, record in enumerate(csv.DictReader(text.splitlines()), 2):
            yield f"{name}, line {number}", record
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is no record with names")
        yield where, record
