"""The experiments with small models on the page."""

from collections.abc import Mapping

from xlstm_jax.analysis.paper import values
from xlstm_jax.analysis.paper.catalogue import Small
from xlstm_jax.analysis.paper.markdown import (
    HERE,
    OPEN,
    READY,
    REDUCED,
    hours_text,
    table_of,
    words_of,
)
from xlstm_jax.analysis.paper.results import Results
from xlstm_jax.analysis.paper.small import Found, Grid, accuracies, grid_of, hours_of, hours_of_all


def small_section(results: Results, small: Small, image: str) -> list[str]:
    """The paper's table, a row for each model with its state and command, and ours below."""
    columns = list(dict.fromkeys(c for t in small.tables for c in values.TABLES[t]["columns"]))
    printed: dict[str, dict[str, float | None]] = {}
    for table in small.tables:
        for model, row in values.rows_of(table).items():
            printed.setdefault(model, {}).update(row)
    grid, ours = grid_of(small.file), accuracies(results, small.file)
    hours = hours_of(results, small.file)
    by_column = [values.as_printed(row.get(c) for row in printed.values()) for c in columns]
    lines = [
        [
            model,
            *(shown and f"*{shown}*" for shown in row),
            *_state(small, grid, ours, model, hours),
        ]
        for model, row in zip(printed, zip(*by_column, strict=True), strict=True)
    ]
    header = (
        "the paper",
        *(f"{words_of(column)}:" for column in columns),
        "state",
        "full run",
        "device hours:",
    )
    note = (
        f"The whole grid at the paper's sizes is {grid.runs:,} runs of small models "
        f"([experiments](experiments.md)): `{small.command} --part=1/8` is the first of eight jobs "
        f"that share them. {whole_grid(hours_of_all(results, small.file))}"
    )
    own = own_table(results, small)
    return [f"## {small.title}", image, table_of(header, lines), *([own] if own else []), note]


def own_table(results: Results, small: Small) -> str:
    """Our numbers of an experiment; empty where there are none."""
    ours = accuracies(results, small.file)
    if not ours.values:
        return ""
    return table_of(
        (f"{small.title}; {ours.title}", *(f"{words_of(column)}:" for column in ours.columns)),
        [
            [model, *("" if c not in row else row[c].text for c in ours.columns)]
            for model, row in ours.values.items()
        ],
    )


def whole_grid(hours: float | None) -> str:
    """A sentence on what all runs of a grid take."""
    if hours is None:
        return "Device hours: not known, no such run was timed or modelled on a GPU."
    return (
        f"Device hours: {hours_text(hours)} of an H100 in all, modelled (`python -m "
        "benchmarks.modelled_grids`): the step of one run of each model, the other runs by their "
        "tokens; a run alone on its device."
    )


def _state(
    small: Small, grid: Grid, ours: Found, row: str, hours: Mapping[str, float]
) -> tuple[str, str, str]:
    """The state of a row of the paper, the command of its full run and its device hours."""
    models = small.of.get(row, (row,))
    if not models:
        return "chance", "", ""
    if missing := [grid.absent.get(model, "not in the file") for model in models
                   if model not in grid.names]:  # fmt: skip
        return f"{OPEN}: {missing[0]}", "", ""
    scale = REDUCED if "reduced" in ours.title else HERE
    done = any(model in ours.values for model in models)
    names = [grid.names[model] for model in models]
    total = sum(hours[name] for name in names) if set(names) <= hours.keys() else None
    state = f"{scale}; {READY}" if done else READY
    return state, f"`{small.command} --models={','.join(names)}`", hours_text(total)
