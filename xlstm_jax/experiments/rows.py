"""Results as rows, one JSON object a line: all that reports are made of.

A row has experiment, preset, cell, model, dim, learning_rate, seed, config (a hash of what was
computed), parameters, steps, seconds, devices, and of one number set, metric, value, n. Each run
has a file of its own, which is there when the run is done.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

from xlstm_jax.analysis.choosing import Row
from xlstm_jax.config import Config, flat, keys
from xlstm_jax.errors import UserError

FILE = "rows.jsonl"


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits that are others where something else is computed."""
    free = {key.name for key in keys() if key.may_change}
    values = {key: value for key, value in flat(config).items() if key not in free}
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(folder: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes a run's rows: all of them or none."""
    lines = [json.dumps(_finite(row)) + "\n" for row in rows]
    unfinished = folder / f"{FILE}.tmp"
    unfinished.write_text("".join(lines))
    unfinished.replace(folder / FILE)


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """A run's rows; none where it is not done.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows and all("metric" in row and "value" in row for row in rows)
    except (OSError, ValueError, TypeError, AssertionError):
        raise UserError(
            f"{str(path)!r} is damaged; move it away, and the experiment's command writes it again"
        ) from None
    return [{**row, "value": math.nan if row["value"] is None else row["value"]} for row in rows]


def read_all(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of all runs below a folder, by the name of the run."""
    return [row for path in sorted(folder.glob(f"*/{FILE}")) for row in read(path.parent)]


def _finite(row: Row) -> Row:
    """JSON has no number that is none."""
    return {**row, "value": row["value"] if math.isfinite(row["value"]) else None}
