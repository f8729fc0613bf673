"""Draws every figure and table of arXiv 2405.04517 that has printed numbers, ours beside them, and
writes docs/paper.md.

    python -m xlstm_jax.analysis.paper [--evaluations='xLSTM[1:0]=RUN/eval/600000,Llama=DIR']
        [--clone=.]

Ours are rows of results: benchmarks/results/comparison.jsonl and docs/results/*.jsonl. Whatever
the project's commands write as rows may lie there: the results.jsonl of a report of an experiment,
the runs.jsonl of a fit, times of inference, speeds. --evaluations adds what eval.py found to
docs/results/evaluations.jsonl. Needs scipy: pip install -e '.[analysis]'.
"""

import pathlib
import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.paper import evaluations, page, results, values
from xlstm_jax.analysis.paper.figures import FIGURES
from xlstm_jax.errors import UserError

PAGE, DPI = "docs/paper.md", 110
FLAGS = {
    "evaluations": "MODEL=FOLDER, with commas between: the paper's name of a model, and where "
    "eval.py wrote its results.json",
    "clone": "the project's folder, whose rows are read and whose docs/ is written; . by default",
}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS)
        root = pathlib.Path(flags.clone or ".").expanduser()
        if not (root / "docs").is_dir():
            raise UserError(
                f"{str(root)!r} has no folder docs; run this in a clone of the project, or name "
                "one with --clone"
            )
        check_known()
        given = _evaluations(flags.evaluations)
        added = [
            row
            for model, folder in given
            for row in evaluations.rows_of_folder(model, folder, values.SLIMPAJAMA)
        ]
        if added:
            evaluations.add(root, added)
        found = results.read(root)
        text = page.markdown(found, root)
        for name, (draw, _) in FIGURES.items():
            if (figure := draw(found)) is not None:
                figure_style.save(figure, root / "docs" / name, dpi=DPI)
        unfinished = (root / PAGE).with_name("paper.md.tmp")
        unfinished.write_text(text)
        unfinished.replace(root / PAGE)
        print(root / PAGE, flush=True)

    return command_line.run(command)


def check_known() -> None:
    """Raises `UserError` where paper_values.json has a table that is neither drawn nor refused."""
    if unknown := set(values.TABLES) - set(page.DRAWN) - set(page.REFUSED):
        raise UserError(
            f"paper_values.json has {sorted(unknown)}, which no figure draws; add it to FIGURES in "
            "xlstm_jax/analysis/paper/figures.py, or to REFUSED in page.py with the reason"
        )


def _evaluations(text: str | None) -> list[tuple[str, pathlib.Path]]:
    """(model, folder) of each."""
    found = []
    for entry in text.split(",") if text else []:
        model, _, folder = entry.partition("=")
        if model not in values.TABLES["table1_15B"]["rows"] or not folder:
            raise UserError(
                f"--evaluations has {entry!r}; it must be MODEL=FOLDER, MODEL one of "
                f"{', '.join(values.TABLES['table1_15B']['rows'])}"
            )
        found.append((model, pathlib.Path(folder).expanduser()))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
