"""loss.png: a run's loss against its steps and, where the task counts right answers, their share.

Nothing here knows a task: what metrics.jsonl has is drawn. Every number of an event whose name has
"accuracy" in it becomes a curve of the second panel.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xlstm_jax.analysis.figure_style import COLOURS, MARKERS
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.metrics import read_records
from xlstm_jax.training.outlets import replace_file

TRAINING = COLOURS[0]
HELD_OUT = tuple(zip(COLOURS[1:], MARKERS, strict=False))
DASHES = ("-", "--", ":", "-.")  # of the accuracies of one set
BEGINNING = 0.1  # share of the steps whose losses need not fit on the y axis
SMOOTHED_OVER = 1 / 25  # of the training events, on each side
OUTLIERS = (0.01, 0.99)  # quantiles of the single steps' losses; what lies beyond may be cut off
LEAST_TO_SMOOTH = 20  # events; fewer are shown as they are
MANY_MARKS = 40  # points of a curve above which they are not marked one by one


class Curve(NamedTuple):
    """A number of a set against the step."""

    steps: np.ndarray
    values: np.ndarray


def draw_loss(folder: RunFolder, unit: str | None = None) -> None:
    """Writes loss.png from metrics.jsonl; `unit` is that of the loss."""
    image = io.BytesIO()
    figure_of(read_records(folder.metrics), unit).savefig(image, format="png", dpi=120)
    replace_file(folder.loss_figure, image.getvalue())


def figure_of(records: Sequence[Mapping[str, Any]], unit: str | None = None) -> Figure:
    """The figure of the events of a metrics.jsonl."""
    sets = _sets(records)
    accuracies = list(dict.fromkeys(name for r in records for name in r if "accuracy" in name))
    panels = 2 if accuracies else 1
    figure = Figure(figsize=(8, 4 * panels), layout="constrained")
    all_axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    _loss_panel(all_axes[0], records, sets, unit)
    if accuracies:
        _accuracy_panel(all_axes[1], records, sets, accuracies)
    all_axes[-1].set_xlabel("training step")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over each value and its neighbours, as many before it as after it. At the beginning,
    where a curve falls steeply, these are fewer; at the end those after it are missing.
    """
    reach = np.minimum(np.arange(len(values)), round(SMOOTHED_OVER * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.arange(len(values)) - reach
    last = np.minimum(np.arange(len(values)) + reach, len(values) - 1)
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def _sets(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The held-out sets, in the order in which they were evaluated."""
    splits = dict.fromkeys(record["split"] for record in records)
    return [split for split in splits if split not in ("train", "skipped")]


def _title(split: str) -> str:
    """A set in words; runs call the first one "validation" and others "validation/NAME"."""
    name = split.partition("/")[2]
    return f"held out: {name}" if name else "held out"


def _curve(records: Iterable[Mapping[str, Any]], split: str, name: str) -> Curve:
    points = [
        (record["step"], record[name])
        for record in records
        if record["split"] == split
        and isinstance(record.get(name), int | float)
        and math.isfinite(record[name])
    ]
    steps, values = np.array(points, float).reshape(-1, 2).T
    return Curve(steps, values)


def _styles(sets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(set, colour, marker)."""
    for number, split in enumerate(sets):
        yield split, *HELD_OUT[number % len(HELD_OUT)]


def _loss_panel(
    axes: Axes, records: Sequence[Mapping[str, Any]], sets: Sequence[str], unit: str | None
) -> None:
    drawn = []
    steps, values = _curve(records, "train", "loss")
    if len(steps) >= LEAST_TO_SMOOTH:
        axes.plot(steps, values, color=TRAINING, alpha=0.4, linewidth=0.7, label="training, a step")
        drawn.append(Curve(steps, np.clip(values, *np.quantile(values, OUTLIERS))))
        values = smoothed(values)
        axes.plot(steps, values, color=TRAINING, linewidth=1.8, label="training, smoothed")
    elif len(steps):
        axes.plot(steps, values, color=TRAINING, marker=".", label="training, a step")
    drawn.append(Curve(steps, values))
    for split, colour, marker in _styles(sets):
        curve = _curve(records, split, "loss")
        if len(curve.steps):
            drawn.append(curve)
            _plot_held_out(axes, curve, colour, marker, label=_title(split))
    axes.set_ylabel("loss" if unit is None else f"loss ({unit})")
    _show_the_end(axes, drawn)


def _plot_held_out(axes: Axes, curve: Curve, colour: str, marker: str, **how: Any) -> None:
    few = len(curve.steps) <= MANY_MARKS
    axes.plot(*curve, color=colour, marker=marker if few else None, markersize=5, **how)


def _show_the_end(axes: Axes, curves: Sequence[Curve]) -> None:
    """Chooses the y axis by what comes after the beginning, and says where the curves begin if
    that is above it.
    """
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return
    last = max(curve.steps[-1] for curve in curves)
    later = [curve.values[curve.steps > BEGINNING * last] for curve in curves]
    low, high = (choose(np.concatenate(later)) for choose in (np.min, np.max))
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    begin = max(curve.values[0] for curve in curves)
    if begin > high + margin:
        note = f"the beginning, at {begin:.3g}, is above"
        axes.set_title(note, loc="left", fontsize="small", color="0.3")
    axes.set_ylim(low - margin, high + margin)


def _accuracy_panel(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    sets: Sequence[str],
    accuracies: Sequence[str],
) -> None:
    """A curve for each accuracy of each set, but for those that say the same as another."""
    for split, colour, marker in (("train", TRAINING, None), *_styles(sets)):
        there: list[Curve] = []
        for name in accuracies:
            curve = _curve(records, split, name)
            if not len(curve.steps) or any(np.array_equal(curve, other) for other in there):
                continue
            title = "training" if split == "train" else _title(split)
            label = f"{title}, {name.replace('_', ' ')}"
            dashes = DASHES[len(there) % len(DASHES)]
            there.append(curve)
            if split == "train":
                smooth = len(curve.steps) >= LEAST_TO_SMOOTH
                values = smoothed(curve.values) if smooth else curve.values
                axes.plot(curve.steps, values, color=colour, linestyle=dashes, label=label)
            else:
                _plot_held_out(axes, curve, colour, marker, linestyle=dashes, label=label)
    axes.set_ylabel("accuracy")
    low = min(np.min(line.get_ydata()) for line in axes.lines) if axes.lines else 0.0
    axes.set_ylim(min(-0.03, low - 0.03), 1.03)
