"""Rows of steps that are compiled for one H100 that is not there and timed by the model of
xlstm_jax.analysis.compiled, one row after another into a file of JSON lines. Rows that are there
are kept, so that a command can be stopped.
"""

import argparse
import datetime
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks.provenance import ROOT, commit

RESULTS = ROOT / "docs" / "results"
TOPOLOGY, DEVICE, HOW = "h100:1x1x1", "H100", "modelled"
Row = dict[str, Any]


def make(
    description: str | None,
    file: pathlib.Path,
    names: Sequence[str],
    is_of: Callable[[Row, str], bool],
    row_of: Callable[[str], Row | None],
) -> None:
    """What such a command does: makes the rows that are missing, or those of --only again.

    Args:
        is_of: whether a row that is there is of this name.
        row_of: compiles; None where there is no row, which it has said then.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on FILE:NAME")
    parser.add_argument("--again", action="store_true", help="rows that are there too")
    given = parser.parse_args()
    for name in names:
        rows = [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []
        others = [row for row in rows if not is_of(row, name)]
        there = len(others) < len(rows)
        if not re.search(given.only, name) or (there and not given.again):
            continue
        if (found := row_of(name)) is not None:
            row = found | _made()
            file.write_text("".join(json.dumps(one) + "\n" for one in [*others, row]))
            shown = ", ".join(f"{key} {value}" for key, value in found.items())
            print(f"{name}: {shown}", flush=True)


def _made() -> Row:
    return {
        "commit": commit(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
