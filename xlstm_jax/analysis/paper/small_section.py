"""The experiments with small models on the page."""

from xlstm_jax.analysis.paper import values
from xlstm_jax.analysis.paper.catalogue import Small
from xlstm_jax.analysis.paper.markdown import HERE, OPEN, READY, REDUCED, table_of, words_of
from xlstm_jax.analysis.paper.results import Results
from xlstm_jax.analysis.paper.small import Found, Grid, accuracies, grid_of


def small_section(results: Results, small: Small, image: str) -> list[str]:
    """The paper's table, a row for each model with its state and command, and ours below."""
    columns = list(dict.fromkeys(c for t in small.tables for c in values.TABLES[t]["columns"]))
    printed: dict[str, dict[str, float | None]] = {}
    for table in small.tables:
        for model, row in values.rows_of(table).items():
            printed.setdefault(model, {}).update(row)
    grid, ours = grid_of(small.file), accuracies(results, small.file)
    by_column = [values.as_printed(row.get(c) for row in printed.values()) for c in columns]
    lines = [
        [
            model,
            *(shown and f"*{shown}*" for shown in row),
            *_state(small, grid, ours, model),
        ]
        for model, row in zip(printed, zip(*by_column, strict=True), strict=True)
    ]
    header = ("the paper", *(f"{words_of(column)}:" for column in columns), "state", "full run")
    note = (
        f"The whole grid at the paper's sizes is {grid.runs:,} runs of small models "
        f"([experiments](experiments.md)): `{small.command} --part=1/8` is the first of eight jobs "
        "that share them. Device hours: not known, no such run was timed on a GPU."
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


def _state(small: Small, grid: Grid, ours: Found, row: str) -> tuple[str, str]:
    """The state of a row of the paper, and the command of its full run."""
    models = small.of.get(row, (row,))
    if not models:
        return "chance", ""
    if missing := [grid.absent.get(model, "not in the file") for model in models
                   if model not in grid.names]:  # fmt: skip
        return f"{OPEN}: {missing[0]}", ""
    scale = REDUCED if "reduced" in ours.title else HERE
    done = any(model in ours.values for model in models)
    names = ",".join(grid.names[model] for model in models)
    return f"{scale}; {READY}" if done else READY, f"`{small.command} --models={names}`"
