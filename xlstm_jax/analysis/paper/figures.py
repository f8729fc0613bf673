"""The figures: the paper's numbers, and ours on panels of their own beside them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.paper import panels, values
from xlstm_jax.analysis.paper.catalogue import TRAINED, Entry
from xlstm_jax.analysis.paper.results import Results
from xlstm_jax.analysis.paper.small import Found, accuracies
from xlstm_jax.analysis.scaling.figures import inference_figure
from xlstm_jax.analysis.scaling.inference import fit_all, timing_of
from xlstm_jax.analysis.scaling.power_law import fit_power_law
from xlstm_jax.analysis.scaling.table import by_model

REDUCED = "ours, reduced scale"
MISSING = "not trained"


def table_1(results: Results) -> Figure:
    """Perplexity of the fourteen models, the paper's and ours, in the paper's order."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    printed = {name: row["ppl_v2"] for name, row in values.rows_of("table1_15B").items()}
    entries = {entry.label: entry for entry in TRAINED["table1_15B"]}
    order = sorted(printed, key=lambda name: printed[name])
    ours = {name: _perplexity(results, entries[name]) for name in order}
    for axes, found, number in ((left, printed, 0), (right, ours, 1)):
        _dots(axes, [found[name] for name in order], number)
    left.set_yticks(range(len(order)), order)
    left.invert_yaxis()
    left.set(
        xlabel="perplexity per GPT-2 token",
        title="the paper: 350M to 460M parameters,\n15B tokens of SlimPajama",
    )
    right.set(xlabel="perplexity per token", title=f"{REDUCED}: {scale_of(results)}")
    for axes in (left, right):
        figure_style.dress(axes)
    return figure


def ablations(results: Results) -> Figure:
    """Tables 2 and 8: a line of panels for each, the paper's and ours."""
    tables = {
        "table2_components": "from the LSTM to xLSTM[7:1]",
        "table2_gating": "gates of xLSTM[1:0]",
        "table8_matrix_memory": "block around the memory",
    }
    heights = [1 + len(TRAINED[table]) for table in tables]
    figure = Figure(figsize=(8, 0.36 * sum(heights) + 1.5), layout="constrained")
    grid = figure.subplots(3, 2, sharey="row", height_ratios=heights)
    for (left, right), (table, title) in zip(grid, tables.items(), strict=True):
        entries = TRAINED[table]
        printed = [entry[-1] for entry in values.TABLES[table]]
        own = [_perplexity(results, entry) for entry in entries]
        for axes, found, number, missing in (
            (left, printed, 0, "not a number"), (right, own, 1, MISSING),
        ):  # fmt: skip
            _dots(axes, found, number, missing)
            numbers = [value for value in found if value is not None]
            if not numbers:
                axes.set_xticks([])
            elif max(numbers) > 10 * min(numbers):
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(figure_style.plain_numbers())
        left.set_yticks(range(len(entries)), [entry.words for entry in entries], fontsize=8)
        left.set_ylim(len(entries) - 0.5, -0.5)
        left.set_title(f"{title}: the paper", fontsize=9)
        right.set_title(REDUCED, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("perplexity per token")
    return figure


def table_3(results: Results) -> Figure:
    """Figure 8 and table 3; a third panel has our series of sizes, where there is one."""
    figure = Figure(figsize=(11 if results.runs else 8, 3.6), layout="constrained")
    axes = figure.subplots(1, 3 if results.runs else 2)
    _perplexity_by_size(axes[0])
    panels.accuracy_by_size(axes[1])
    if results.runs:
        _own_series(axes[2], results)
    return figure


def paloma(results: Results) -> Figure:
    """Tables 4 and 9, and the domains won."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1), height_ratios=(2, 1))
    panels.paloma_by_source(figure.add_subplot(grid[:, 0]), "1.3B")
    panels.paloma_average(figure.add_subplot(grid[0, 1]))
    panels.paloma_wins(figure.add_subplot(grid[1, 1]))
    return figure


def figure_7(results: Results) -> Figure:
    """Perplexity against context: the paper's ends, and our curves."""
    curves = [row for row in results.evaluations if row["suite"].startswith("extrapolation")]
    figure = Figure(figsize=(8 if curves else 5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    panels.papers_extrapolation(axes[0])
    if curves:
        _own_extrapolation(axes[1], curves)
    return figure


def formal(results: Results) -> Figure:
    """Figures 12 and 4: scaled accuracy of models by language."""
    tables = ("fig12_formal_scaled_acc", "fig4_formal_scaled_acc")
    printed: dict[str, dict[str, float | None]] = {}
    for table in tables:
        for model, row in values.rows_of(table).items():
            printed.setdefault(model, {}).update(row)
    return _heat_maps(printed, accuracies(results, "formal.py"), "scaled accuracy")


def arena(results: Results) -> Figure:
    """Table 6: accuracy of models by task."""
    printed = {
        model: {column: value for column, value in row.items() if not column.startswith("rank")}
        for model, row in values.rows_of("table6_lra_test_acc").items()
    }
    return _heat_maps(printed, accuracies(results, "lra.py"), "accuracy")


def times_of_inference(results: Results) -> Figure | None:
    """Of what was measured here; None where nothing was."""
    if not results.inference:
        return None
    timings = [timing_of(dict(row), "times of inference") for row in results.inference]
    return inference_figure(fit_all(timings))


# name of the file -> what draws it, and the tables of paper_values.json that are in it
FIGURES: Mapping[str, tuple[Callable[[Results], Figure | None], tuple[str, ...]]] = {
    "paper_table_1.png": (table_1, ("table1_15B",)),
    "paper_tables_2_8.png": (
        ablations, ("table2_components", "table2_gating", "table8_matrix_memory"),
    ),
    "paper_table_3.png": (table_3, ("table3_300B",)),
    "paper_tables_4_9.png": (
        paloma,
        ("table4_paloma_ppl", "table9_paloma_toxic_ppl", "paloma_wins_1p3B_xlstm10_of_571"),
    ),
    "paper_figure_7.png": (figure_7, ("fig7_extrapolation_ppl",)),
    "paper_figures_4_12.png": (formal, ("fig4_formal_scaled_acc", "fig12_formal_scaled_acc")),
    "paper_table_6.png": (arena, ("table6_lra_test_acc",)),
    "paper_inference.png": (times_of_inference, ()),
}  # fmt: skip


def scale_of(results: Results) -> str:
    """Of the models of table 1 that were trained here."""
    rows = list(results.trained.values())
    if not rows:
        return "none trained"
    row = rows[0]
    millions = [r["without_embeddings"] / 1e6 for r in rows if r["without_embeddings"]]
    return (
        f"{min(millions):.1f}M to {max(millions):.1f}M parameters,\n{row['tokens']:,} tokens of "
        f"{row['data']} ({row['tokenizer']} tokenizer)"
    )


def _perplexity(results: Results, entry: Entry) -> float | None:
    row = results.trained.get(entry.trained)
    return None if row is None else row["perplexity"]


def _dots(axes: Axes, found: Sequence[float | None], number: int, missing: str = MISSING) -> None:
    """A value in each line, written beside its dot; the least one is filled."""
    numbers = [value for value in found if value is not None]
    colour = figure_style.colour(number)
    for place, value in enumerate(found):
        if value is None:
            axes.text(0.02, place, missing, transform=axes.get_yaxis_transform(), color="gray",
                      va="center", fontsize=8)  # fmt: skip
            continue
        best = value == min(numbers)
        axes.plot(value, place, "o", color=colour, fillstyle="full" if best else "none")
        axes.annotate(f"{value:,.2f}", (value, place), (6, 0), textcoords="offset points",
                      va="center", fontsize=8, weight="bold" if best else "normal")  # fmt: skip
    axes.margins(x=0.2, y=0.06)
    figure_style.dress(axes)


def _perplexity_by_size(axes: Axes) -> None:
    """Figure 8: perplexity after 300B tokens against parameters, with lines of least squares."""
    for number, model in enumerate(values.MODELS):
        rows = [values.rows_of("table3_300B", size)[model] for size in values.SLIMPAJAMA]
        params = np.array([1e6 * row["params_M"] for row in rows])
        found = np.array([row["slimpajama_ppl"] for row in rows])
        law = fit_power_law(params, found)
        style = figure_style.style(number)
        label = f"{model}: exponent {law.exponent:.3f}"
        axes.plot(params, found, **style | {"linestyle": "none"}, label=label)
        axes.plot(params, law(params), color=style["color"], linewidth=1)
    axes.set(
        xlabel="parameters",
        ylabel="perplexity per token",
        title="the paper: 300B tokens",
    )
    panels.logarithmic(axes, (2e8, 5e8, 1e9), ("200M", "500M", "1B"), (9, 10, 12, 14, 16))
    figure_style.dress(axes)


def _own_series(axes: Axes, results: Results) -> None:
    """Our runs for scaling laws: perplexity against parameters, a curve for each budget."""
    families = by_model(results.runs)
    others = [family for family in families if family not in values.MODELS]
    for family, runs in families.items():
        # the colour that the model has in the paper's panel
        number, label = [*values.MODELS, *others].index(family), family
        for budget in sorted({run.budget for run in runs}, key=lambda b: b or 0):
            own = sorted((run.params, math.exp(run.loss)) for run in runs if run.budget == budget)
            axes.plot(*zip(*own, strict=True), **figure_style.style(number), label=label)
            label = None  # one entry of the legend for a family
    axes.set(
        xlabel="parameters", ylabel="perplexity per token", yscale="log",
        title=f"{REDUCED}: a curve for each budget",
    )  # fmt: skip
    figure_style.log_axis(axes.xaxis)
    figure_style.plain_ticks(axes.yaxis, np.exp([run.loss for run in results.runs]))
    figure_style.dress(axes)


def _own_extrapolation(axes: Axes, curves: Sequence[Mapping[str, Any]]) -> None:
    lengths = sorted({int(length) for row in curves for length in row["values"]})
    others = [row["model"] for row in curves if row["model"] not in values.MODELS]
    for row in curves:
        # the colour that the model has in the paper's panel
        number = [*values.MODELS, *others].index(row["model"])
        points = sorted((int(length), value) for length, value in row["values"].items())
        label = f"{row['model']}, {row['parameters'] / 1e6:.3g}M"
        axes.plot(*zip(*points, strict=True), **figure_style.style(number), label=label)
    reduced = all(row["reduced"] for row in curves)
    axes.set(
        xlabel="context (tokens)",
        ylabel="perplexity per token",
        title=REDUCED if reduced else "ours",
        yscale="log",
    )
    axes.yaxis.set_major_formatter(figure_style.plain_numbers())
    axes.yaxis.set_minor_formatter(figure_style.plain_numbers())
    figure_style.lengths_axis(axes, lengths)
    figure_style.dress(axes)


def _heat_maps(printed: Mapping[str, Mapping[str, float | None]], ours: Found, what: str) -> Figure:
    """The paper's table and, where there is one, ours, both coloured from 0 to 1."""
    columns = list(dict.fromkeys(column for row in printed.values() for column in row))
    heights = [2 + len(printed)]
    if ours.values:
        heights.append(2 + len(ours.values))
    width = 2.2 + 0.72 * max(len(columns), len(ours.columns))
    figure = Figure(figsize=(width, 0.32 * sum(heights) + 1), layout="constrained")
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    numbers = np.array([[_nan(row.get(column)) for column in columns] for row in printed.values()])
    by_column = [values.as_printed(row.get(c) for row in printed.values()) for c in columns]
    texts = list(zip(*by_column, strict=True))
    image = figure_style.heat_map(
        grid[0], numbers, texts, list(printed), [column.replace("_", " ") for column in columns]
    )
    grid[0].set_title("the paper", fontsize=10)
    if ours.values:
        found = [[row.get(column) for column in ours.columns] for row in ours.values.values()]
        figure_style.heat_map(
            grid[1],
            np.array([[math.nan if cell is None else cell.mean for cell in row] for row in found]),
            [["" if cell is None else cell.text for cell in row] for row in found],
            list(ours.values),
            [column.replace("_", " ") for column in ours.columns],
        )
        grid[1].set_title(ours.title, fontsize=10)
    figure.colorbar(image, ax=grid, label=what)
    return figure


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
