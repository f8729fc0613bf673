"""A report of an experiment: a table and figures from its rows, the paper's numbers beside them."""

import json
import math
import pathlib
from collections.abc import Mapping

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.choosing import Key, Result, guesses_of, mean_ranks, results_of
from xlstm_jax.errors import UserError
from xlstm_jax.experiments import figures
from xlstm_jax.experiments import rows as results
from xlstm_jax.experiments.grid import Experiment, Run, runs_of
from xlstm_jax.progress import counted

MARKDOWN, ALL_ROWS = "report.md", "results.jsonl"
DIGITS = 4  # of results, behind the point
REDUCED = "Reduced scale: steps, models or data are smaller than the paper's."


def report(experiment: Experiment, folder: pathlib.Path) -> str:
    """Writes report.md, figures and all rows to the folder of an experiment; returns the text.

    Raises:
        UserError: no run is done.
    """
    rows = results.read_all(folder)
    if not rows:
        raise UserError(
            f"no run below {str(folder)!r} is done; give the experiment's command first, with the "
            "same --workdir and --preset"
        )
    found = results_of(experiment, rows)
    text = markdown(
        experiment,
        found,
        guesses_of(experiment, rows),
        missing(experiment, folder),
        rows[0]["devices"],
    )
    drawn = {"results.png": figures.overview(experiment, found)}
    if experiment.figure != "groups" and any(result.curve for result in found.values()):
        drawn["curves.png"] = figures.curves(experiment, found)
    for name, figure in drawn.items():
        figure_style.save(figure, folder / name)
    lines = [json.dumps({**row, "value": _number(row["value"])}) + "\n" for row in rows]
    _replace(folder / ALL_ROWS, "".join(lines))
    _replace(folder / MARKDOWN, text)
    return text


def missing(experiment: Experiment, folder: pathlib.Path) -> int:
    """How many runs of the whole grid are not done."""
    done = {Run(*(row[field] for field in Run._fields)).name for row in results.read_all(folder)}
    return len({run.name for run in runs_of(experiment)} - done)


def markdown(
    experiment: Experiment,
    found: Mapping[Key, Result],
    guesses: Mapping[str, Mapping[str, float]],
    missing: int,
    devices: str,
) -> str:
    """The report as text: a row for each model, below it the paper's where there is one."""
    cells = [c for c in experiment.cells if any(key[0] == c for key in found)]
    dims = {cell: sorted({key[2] for key in found if key[0] == cell}) for cell in cells}
    single = all(len(of_cell) == 1 for of_cell in dims.values())
    lines: list[list[str]] = [["", *cells], ["---"] * (1 + len(cells))]
    for model, label in experiment.models.items():
        # one row for a model, or one for each of its dimensions
        for dim in (None,) if single else sorted(set().union(*dims.values())):
            own = [found.get((cell, model, dims[cell][0] if single else dim)) for cell in cells]
            if any(own):
                lines.append([label if single else f"{label}, dim {dim}", *map(shown, own)])
        values = [experiment.paper.get(label, {}).get(cell) for cell in cells]
        if any(value is not None for value in values):
            lines.append([f"paper: {label}", *("" if v is None else f"*{v:.2f}*" for v in values)])
    for guess, values in guesses.items():
        lines.append(
            [f"guess: {guess}", *(f"{values[c]:.{DIGITS}f}" if c in values else "" for c in cells)]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "\n\n".join([f"# {experiment.title}", table, *_notes(experiment, found, missing, devices)])
        + "\n"
    )


def _notes(
    experiment: Experiment, found: Mapping[Key, Result], missing: int, devices: str
) -> list[str]:
    seeds = sorted({result.seeds for result in found.values()})
    spread = {
        "deviation": "standard deviation over seeds",
        "interval": "half of a 99 % confidence interval",
    }[experiment.spread]
    set_name, metric = experiment.chosen_by
    rates = max(result.rates for result in found.values())
    notes = [
        f"{experiment.metric.replace('_', ' ').capitalize()} on test data; ± {spread}. Seeds: "
        f"{', '.join(map(str, seeds))}. The learning rate is the best of {rates} by the "
        f"{metric.replace('_', ' ')} on {set_name}. Run on {devices}.",
        *experiment.notes,
    ]
    if experiment.ranked:
        notes += _ranks(experiment, found)
    if experiment.reduced:
        notes.append(REDUCED)
    if missing:
        verb = "is" if missing == 1 else "are"
        notes.append(f"{counted(missing, 'run')} of the grid {verb} not done.")
    notes += [f"{experiment.models[m]} is left out: {why}." for m, why in experiment.absent.items()]
    notes += [f"{cell} is left out: {why}." for cell, why in experiment.left_out.items()]
    lines = [["cell", "model", "dim", "parameters", "steps", "learning rate"], ["---"] * 6]
    for (cell, model, dim), result in sorted(found.items()):
        parameters = "" if result.parameters is None else f"{result.parameters:,}"
        steps = ", ".join(f"{steps:,}" for steps in result.steps)
        label = experiment.models.get(model, model)
        lines.append([cell, label, f"{dim}", parameters, steps, f"{result.learning_rate:g}"])
    return [*notes, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _ranks(experiment: Experiment, found: Mapping[Key, Result]) -> list[str]:
    """The mean ranks in one line, where there is something to rank."""
    cells = [cell for cell in experiment.cells if any(key[0] == cell for key in found)]
    values: dict[str, dict[str, float]] = {}
    for (cell, model, _), result in found.items():
        values.setdefault(experiment.models.get(model, model), {})[cell] = result.mean
    if len(values) < 2:
        return []
    better = experiment.higher_is_better
    ranks = sorted(
        mean_ranks(values, cells, higher_is_better=better).items(), key=lambda entry: entry[1]
    )
    named = ", ".join(f"{label} {rank:.1f}" for label, rank in ranks)
    return [f"Mean rank over {len(cells)} of the paper's tasks: {named}."]


def shown(result: Result | None) -> str:
    """A result as a cell of the table."""
    if result is None:
        return ""
    if math.isnan(result.mean):
        return "diverged"
    spread = "" if result.spread is None else f" ± {result.spread:.{DIGITS}f}"
    return f"{result.mean:.{DIGITS}f}{spread}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _replace(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
