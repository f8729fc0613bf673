"""Results for people and programs: `results.json`, `results.md` and figures in one folder, suite by
suite.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.paper import values as paper_values
from xlstm_jax.config import ModelConfig
from xlstm_jax.errors import UserError

JSON, MARKDOWN = "results.json", "results.md"
PAPER_NOTE = (
    "Rows of the paper: 300B tokens of SlimPajama, GPT-2 tokenizer; perplexities of other texts "
    "do not compare."
)
OTHER_TOKENIZER_NOTE = (
    "The paper's perplexities are per token of the GPT-2 tokenizer. This model has another "
    "tokenizer, so that they do not stand beside its own; bits per byte compare."
)


class Report(NamedTuple):
    """One suite's results.

    Attributes:
        header, rows: of its table, as text.
        values: for JSON.
        notes: below the table.
        figures: file name -> figure.
        heading: above it, where the suite's name would say something else.
    """

    suite: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: dict[str, Any]
    notes: Sequence[str] = ()
    figures: dict[str, Figure] = {}
    heading: str | None = None

    def __repr__(self) -> str:
        """What a notebook shows: the table."""
        return self.markdown()

    def markdown(self) -> str:
        """A heading and the table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"## {self.heading or self.suite}", table, *self.notes])


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a folder of results that could not be written, before hours of work.

    Raises:
        UserError: it is a file or lies below one, may not be written to, or holds a results.json
            that can't be read.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    what = f"the results' folder {str(folder)!r} can't be used (--output names another)"
    if not there.is_dir():
        raise UserError(f"{what}: {str(there)!r} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{what}: {str(there)!r} may not be written to")
    _read(folder)


def check_subject(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """Refuses a folder whose results are of another checkpoint: numbers of two models would stand
    under one title.

    Raises:
        UserError: it holds such results.
    """
    for name, suite in _read(folder)["suites"].items():
        theirs = suite.get("about", {})
        different = [key for key in ("checkpoint", "step") if theirs.get(key) != about[key]]
        if different:
            raise UserError(
                f"--output {str(folder)!r} holds results of another checkpoint: {name} of step "
                f"{theirs.get('step')} of {theirs.get('checkpoint')!r}; give another folder"
            )


def write(folder: pathlib.Path, about: dict[str, Any], reports: Sequence[Report]) -> None:
    """Adds reports to a folder; suites that are there already and not among them stay.

    A suite's earlier numbers, if they were others, move to "earlier" in results.json. Every file is
    written beside and renamed, so that a full disk or a killed process leaves the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = _read(folder)
    suites = results["suites"]
    for report in reports:
        entry = {**report.values, "markdown": report.markdown(), "about": about}
        entry = json.loads(json.dumps(entry))  # as it will be read again
        if (before := suites.get(report.suite, entry)) != entry:
            results["earlier"].append({"suite": report.suite, **before})
        suites[report.suite] = entry
        for name, figure in report.figures.items():
            figure_style.save(figure, folder / name)
    _replace(folder / JSON, json.dumps(results, indent=1) + "\n")
    title = f"# {about['model']}, step {about['step']}"
    parts = [title, *(suite["markdown"] for suite in suites.values())]
    _replace(folder / MARKDOWN, "\n\n".join(parts) + "\n")


def _read(folder: pathlib.Path) -> dict[str, Any]:
    """A folder's results.json; without suites where there is none."""
    path = folder / JSON
    if not path.is_file():
        return {"suites": {}, "earlier": []}
    try:
        results = json.loads(path.read_text())
        assert isinstance(results["suites"], dict)
    except (OSError, ValueError, TypeError, KeyError, AssertionError):
        raise UserError(
            f"{str(path)!r} is no file of results, or is damaged; move it away, or give another "
            f"folder with --output"
        ) from None
    return {"earlier": [], **results}


def _replace(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def paper_size(config: ModelConfig) -> str:
    """The size whose rows of the paper stand beside this model's: its own, or 1.3B."""
    return paper_values.SIZES.get((config.dim, config.num_blocks), "1.3B")


def paper_rows(size: str, values: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """(label, value) of every model that the paper has of a size."""
    return [(f"paper: {model} {size}", value) for model, value in values[size].items()]
