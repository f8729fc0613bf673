"""Figures of an experiment's results, in the forms of the paper's (2405.04517, figures 2, 4, 5)."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.choosing import Key, Result
from xlstm_jax.experiments.grid import Experiment

Found = Mapping[Key, Result]


def overview(experiment: Experiment, found: Found) -> Figure:
    """The experiment's main figure."""
    forms = {"heat map": _heat_map, "bars": _bars, "dims": _over_dims, "groups": _groups}
    if experiment.figure == "dims" and len({dim for _, _, dim in found}) == 1:
        return _bars(experiment, found)  # one point is no curve
    return forms[experiment.figure](experiment, found)


def curves(experiment: Experiment, found: Found) -> Figure:
    """The experiment's curve, as accuracy over length: a panel for each cell, a line for each
    model. Where the results are curves over dimensions, a row of such panels for each point.
    """
    if experiment.figure == "dims" and len({dim for _, _, dim in found}) > 1:
        return _points_over_dims(experiment, found)
    cells, models = _axes_of(experiment, found)
    figure, panels = _panels(len(cells))
    for panel, cell in zip(panels, cells, strict=True):
        ticks: list[str] = []
        for number, model in enumerate(models):
            results = [r for (c, m, _), r in found.items() if (c, m) == (cell, model)]
            if not results or not results[-1].curve:
                continue
            points = results[-1].curve
            ticks = list(points)
            panel.plot(
                range(len(points)),
                list(points.values()),
                **figure_style.style(number),
                label=experiment.models[model],
            )
        panel.set_xticks(range(len(ticks)), [tick.replace("_", " ") for tick in ticks])
        panel.tick_params(axis="x", labelrotation=30)
        _dress(panel, cell, *experiment.curve[1:])
    _join_legends(figure, panels)
    return figure


def _points_over_dims(experiment: Experiment, found: Found) -> Figure:
    """Rows: the points of the curve; columns: the cells that have one (the paper's figure 16)."""
    with_curve = {key: result for key, result in found.items() if result.curve}
    cells, models = _axes_of(experiment, with_curve)
    points = list(max((result.curve for result in with_curve.values()), key=len))
    figure = Figure(figsize=(4 * len(cells) + 1, 3.2 * len(points)), layout="constrained")
    panels = figure.subplots(len(points), len(cells), squeeze=False)
    _, over, what = experiment.curve
    for row, point in zip(panels, points, strict=True):
        for panel, cell in zip(row, cells, strict=True):
            for number, model in enumerate(models):
                own = {d: r.curve for (c, m, d), r in with_curve.items() if (c, m) == (cell, model)}
                values = {dim: own[dim][point] for dim in sorted(own) if point in own[dim]}
                if values:
                    label = experiment.models[model]
                    dims, numbers = list(values), list(values.values())
                    panel.plot(dims, numbers, **figure_style.style(number), label=label)
                    panel.set_xscale("log", base=2)
            _dress(panel, f"{cell}: {point.replace('_', ' ')} {over}", "model.dim", what)
    _join_legends(figure, list(panels.flatten()))
    return figure


def _heat_map(experiment: Experiment, found: Found) -> Figure:
    """Models by cells, mean ± spread in each; the colour goes from 0 to 1."""
    cells, models = _axes_of(experiment, found)
    size = (max(7, 2 + 1.3 * len(cells)), 1.6 + 0.5 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    values = np.full((len(models), len(cells)), np.nan)
    texts = [[""] * len(cells) for _ in models]
    for (cell, model, _), result in found.items():
        if cell not in cells or model not in models:
            continue
        row, column = models.index(model), cells.index(cell)
        values[row, column] = result.mean
        text = "diverged" if math.isnan(result.mean) else f"{result.mean:.2f}"
        if result.spread is not None and not math.isnan(result.mean):
            text += f"\n± {result.spread:.2f}"
        texts[row][column] = text
    labels = [experiment.models[model] for model in models]
    columns = [cell.replace("_", " ") for cell in cells]
    image = figure_style.heat_map(axes, values, texts, labels, columns)
    figure.colorbar(image, label=experiment.metric.replace("_", " "))
    figure.suptitle(_title(experiment), fontsize=10, wrap=True)
    return figure


def _bars(experiment: Experiment, found: Found) -> Figure:
    """A panel for each cell, a bar for each model with its interval."""
    cells, models = _axes_of(experiment, found)
    figure, panels = _panels(len(cells))
    for panel, cell in zip(panels, cells, strict=True):
        for number, model in enumerate(models):
            for (c, m, _), result in found.items():
                if (c, m) == (cell, model) and not math.isnan(result.mean):
                    panel.bar(
                        number, result.mean, yerr=result.spread, capsize=4,
                        color=figure_style.colour(number),
                    )  # fmt: skip
        panel.set_xticks(
            range(len(models)), [experiment.models[m] for m in models], rotation=30, ha="right"
        )
        _dress(panel, cell, "", experiment.metric.replace("_", " "))
    figure.suptitle(_title(experiment), fontsize=10, wrap=True)
    return figure


def _groups(experiment: Experiment, found: Found) -> Figure:
    """A panel for each cell, a group of bars for each point of the curve."""
    cells, models = _axes_of(experiment, found)
    figure, panels = _panels(len(cells))
    width = 0.8 / max(1, len(models))
    for panel, cell in zip(panels, cells, strict=True):
        own = {m: r.curve for (c, m, _), r in found.items() if c == cell}
        ticks = max(own.values(), key=len)
        for number, model in enumerate(models):
            points = own.get(model, {})
            panel.bar(
                [list(ticks).index(name) + (number + 0.5) * width - 0.4 for name in points],
                list(points.values()),
                width,
                color=figure_style.colour(number),
                label=experiment.models[model],
            )
        panel.set_xticks(range(len(ticks)), [tick.replace("_", " ") for tick in ticks])
        panel.tick_params(axis="x", labelrotation=30)
        panel.set_yscale("log")  # from few to as many as the vocabulary has tokens
        _dress(panel, cell, *experiment.curve[1:])
    _join_legends(figure, panels)
    figure.suptitle(_title(experiment), fontsize=10, wrap=True)
    return figure


def _over_dims(experiment: Experiment, found: Found) -> Figure:
    """A panel for each cell, a curve over the dimensions for each model."""
    cells, models = _axes_of(experiment, found)
    figure, panels = _panels(len(cells))
    for panel, cell in zip(panels, cells, strict=True):
        for number, model in enumerate(models):
            points = sorted(
                (d, r.mean, r.spread or 0)
                for (c, m, d), r in found.items()
                if (c, m) == (cell, model)
            )
            if points:
                dims, means, spreads = zip(*points, strict=True)
                panel.errorbar(
                    dims, means, yerr=spreads, capsize=3, label=experiment.models[model],
                    **figure_style.style(number),
                )  # fmt: skip
                panel.set_xscale("log", base=2)
        _dress(panel, cell, "model.dim", experiment.metric.replace("_", " "))
    _join_legends(figure, panels)
    figure.suptitle(_title(experiment), fontsize=10, wrap=True)
    return figure


def _axes_of(experiment: Experiment, found: Found) -> tuple[list[str], list[str]]:
    """The cells and the models of which there are results, in the experiment's order."""
    return (
        [cell for cell in experiment.cells if any(key[0] == cell for key in found)],
        [model for model in experiment.models if any(key[1] == model for key in found)],
    )


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3 if count % 4 else 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6, 4 * columns), 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, list(panels[:count])


def _dress(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title.replace("_", " "), fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    figure_style.dress(panel)


def _join_legends(figure: Figure, panels: list[Axes]) -> None:
    """One for several panels, below them, where it hides no curve: it would be the same in each."""
    if len(panels) == 1:
        return
    entries = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        if panel.get_legend() is not None:
            panel.get_legend().remove()
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=max(1, len(entries)),
        frameon=False, fontsize=9,
    )  # fmt: skip


def _title(experiment: Experiment) -> str:
    return f"{experiment.title}{' (reduced scale)' if experiment.reduced else ''}"
