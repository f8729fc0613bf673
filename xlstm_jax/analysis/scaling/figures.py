"""Fits drawn over what was measured, and what they leave over."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.scaling.inference import KINDS, Fitted
from xlstm_jax.analysis.scaling.isoflop import IsoFlopFit
from xlstm_jax.analysis.scaling.parametric import ParametricFit
from xlstm_jax.analysis.scaling.power_law import PowerLaw


def parametric_figure(fit: ParametricFit, params, tokens, loss, name: str) -> Figure:
    """Left: the loss against tokens, a curve per model size; right: residuals in percent."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    params, tokens, loss = (np.asarray(column, float) for column in (params, tokens, loss))
    for number, size in enumerate(np.unique(params)):
        colour, marker = figure_style.colour(number), figure_style.marker(number)
        here = params == size
        along = np.geomspace(tokens[here].min() / 1.3, tokens[here].max() * 1.3, 100)
        left.plot(along, fit.loss(size, along), color=colour, linewidth=1)
        label = figure_style.short(size)
        left.plot(tokens[here], loss[here], marker, color=colour, markersize=5, label=label)
        residuals = 100 * (loss[here] / fit.loss(size, tokens[here]) - 1)
        right.plot(tokens[here], residuals, marker, color=colour, markersize=5)
    exponents = f"N^-{fit.alpha:.3f}, D^-{fit.beta:.3f}"
    if fit.gamma != 1:
        exponents += f", outer {fit.gamma:.3f}"
    left.set(
        xlabel="training tokens D",
        ylabel="held-out loss (nats per token)",
        title=f"{name}: E = {fit.irreducible:.3f}, {exponents}",
    )
    figure_style.log_axis(left.xaxis)
    left.set_yscale("log")
    figure_style.plain_ticks(left.yaxis, loss)
    left.legend(title="parameters N", fontsize=8)
    right.axhline(0, color="gray", linewidth=0.8)
    right.set(
        xlabel="training tokens D",
        ylabel="measured minus fitted loss (%)",
        title="what the fit leaves over",
    )
    figure_style.log_axis(right.xaxis)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def power_law_figure(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float], PowerLaw]],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Left: name -> (x, y, its law) in log-log axes; right: residuals in percent."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, (x, y, law)) in enumerate(lines.items()):
        x, y = np.asarray(x, float), np.asarray(y, float)
        colour, marker = figure_style.colour(number), figure_style.marker(number)
        ends = np.array([x.min() / 1.2, x.max() * 1.2])
        left.plot(ends, law(ends), color=colour, linewidth=1)
        label = f"{name}: exponent {law.exponent:.3f}"
        left.plot(x, y, marker, color=colour, markersize=5, label=label)
        right.plot(x, 100 * (y / law(x) - 1), marker, color=colour, markersize=5)
    left.set(xlabel=xlabel, ylabel=ylabel)
    figure_style.log_axis(left.xaxis)
    left.set_yscale("log")
    figure_style.plain_ticks(
        left.yaxis, np.concatenate([np.asarray(y, float) for _, y, _ in lines.values()])
    )
    left.legend(fontsize=8)
    right.axhline(0, color="gray", linewidth=0.8)
    right.set(xlabel=xlabel, ylabel="measured minus fitted (%)", title="what the lines leave over")
    figure_style.log_axis(right.xaxis)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def isoflop_figure(fit: IsoFlopFit, budget, x, loss, xlabel: str) -> Figure:
    """Left: the loss at each budget with its parabola and optimum; middle: what the parabolas leave
    over, in percent; right: optima against budget.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    budget, x, loss = (np.asarray(column, float) for column in (budget, x, loss))
    for number, parabola in enumerate(fit.parabolas):
        colour, marker = figure_style.colour(number), figure_style.marker(number)
        here = budget == parabola.budget
        along = np.geomspace(parabola.first / 1.1, parabola.last * 1.1, 100)
        left.plot(along, parabola(along), color=colour, linewidth=1)
        label = f"{parabola.budget:.2g} FLOPs"
        left.plot(x[here], loss[here], marker, color=colour, markersize=5, label=label)
        residuals = 100 * (loss[here] / parabola(x[here]) - 1)
        middle.plot(x[here], residuals, marker, color=colour, markersize=5)
        # an optimum beyond the runs is a guess: its star is hollow
        fill = "full" if parabola.is_inside else "none"
        for axes, place in (
            (left, (parabola.optimum, parabola.least)),
            (right, (parabola.budget, parabola.optimum)),
        ):
            axes.plot(*place, "*", color=colour, markersize=13, fillstyle=fill)
    left.set(xlabel=xlabel, ylabel="held-out loss (nats per token)", title="stars: best per budget")
    figure_style.log_axis(left.xaxis)
    left.legend(fontsize=8)
    middle.axhline(0, color="gray", linewidth=0.8)
    middle.set(
        xlabel=xlabel,
        ylabel="measured minus fitted loss (%)",
        title="what the parabolas leave over",
    )
    figure_style.log_axis(middle.xaxis)
    budgets = np.array([parabola.budget for parabola in fit.parabolas])
    ends = np.array([budgets.min() / 1.5, budgets.max() * 1.5])
    right.plot(ends, fit.law(ends), color="gray", linewidth=1)
    right.set(
        xlabel="FLOPs of the whole training",
        ylabel=f"best {xlabel}",
        title=f"grows like budget^{fit.law.exponent:.3f}",
    )
    figure_style.log_axis(right.xaxis)
    figure_style.log_axis(right.yaxis)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    return figure


def inference_figure(results: Sequence[Fitted]) -> Figure:
    """Times against what they are said to go with: left to the first token, right of a step."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    for axes, kind, xlabel in zip(
        figure.subplots(1, 2), KINDS, ("FLOPs of the prompts", "bytes of a step"), strict=True
    ):
        for number, one in enumerate(own for own in results if own.kind == kind):
            work = np.array([timing.work for timing in one.timings])
            milliseconds = 1e3 * np.array([timing.seconds for timing in one.timings])
            style = figure_style.style(number)
            label = f"{one.model} {figure_style.short(one.params)}"
            axes.plot(work, milliseconds, **style | {"linestyle": "none"}, label=label)
            if one.fit is not None:
                along = np.geomspace(work.min(), work.max(), 100)
                axes.plot(along, 1e3 * one.fit(along), color=style["color"], linewidth=1)
        axes.set(xlabel=xlabel, ylabel="milliseconds", title=KINDS[kind])
        axes.set_xscale("log", subs=(2, 5))
        axes.set_yscale("log", subs=(2, 5))
        for axis, form in (
            (axes.xaxis, EngFormatter(sep="")), (axes.yaxis, figure_style.plain_numbers()),
        ):  # fmt: skip
            axis.set_major_formatter(form)
            axis.set_minor_formatter(form)
        axes.tick_params(axis="x", which="both", labelrotation=30)
        figure_style.dress(axes)
    return figure
