"""How all figures look: colours, marks, axes, ticks."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito's colours, which are told apart by colour-blind eyes too; marks differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvP*"
BLUE, ORANGE = COLOURS[:2]
AGAIN = (("full", "-"), ("none", "--"), ("bottom", ":"), ("top", "-."))  # marks, lines
DPI = 150


def colour(number: int) -> str:
    """Of the first, second, ... thing in a figure; from the eighth on they come again."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Like `colour`."""
    return MARKERS[number % len(MARKERS)]


def style(number: int) -> dict[str, Any]:
    """Of a curve: each time that the colours come again, lines and the filling of marks change."""
    filling, line = AGAIN[number // len(COLOURS) % len(AGAIN)]
    return {
        "color": colour(number),
        "marker": marker(number),
        "fillstyle": filling,
        "linestyle": line,
        "markersize": 5,
        "linewidth": 1.2,
    }


def dress(axes: Axes, legend_columns: int = 1) -> None:
    """A faint grid, no box, a title of modest size, a legend where something has a label."""
    axes.grid(alpha=0.3)
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, ncols=legend_columns)


def plain_numbers() -> FuncFormatter:
    """Ticks as 2.5 and 3,000, where logarithmic axes write powers of ten."""
    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def short(count: float) -> str:
    """164e6 -> "164M", 3e19 -> "3e19"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= count < 1e15:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}".replace("e+", "e")


def log_axis(axis: Axis) -> None:
    """A logarithmic axis of counts: ticks at 1, 2 and 5 of each decade, all with their numbers
    where there are few decades; of less than one, as on other axes. What it shows is drawn before.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    least, greatest = axis.get_view_interval()
    numbers = FuncFormatter(lambda value, _: short(value))
    axis.set_major_formatter(numbers)
    if greatest < 4 * least:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        return
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(numbers if greatest < 1000 * least else NullFormatter())


def plain_ticks(axis: Axis, values: np.ndarray) -> None:
    """Numbers as people write them, on a logarithmic axis of less than a decade."""
    least, greatest = values.min(), values.max()
    if greatest < 10 * least:
        ticks = MaxNLocator(6, min_n_ticks=3).tick_values(least, greatest)
        ticks = ticks[(ticks > 0.9 * least) & (ticks < 1.1 * greatest)]
        axis.set_ticks(ticks, [f"{tick:.6g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())


def lengths_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """A logarithmic x axis whose ticks are the lengths themselves."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
    axes.xaxis.set_minor_locator(NullLocator())


def heat_map(
    axes: Axes,
    values: np.ndarray,
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> AxesImage:
    """A table of shares, coloured from 0 to 1, with a text in each cell.

    Args:
        values: [rows, columns]; NaN leaves a cell white.
    """
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = not math.isnan(value) and value < 0.5
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=8,
        )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    return image


def save(figure: Figure, path: pathlib.Path, dpi: int = DPI) -> None:
    """Writes a PNG beside and renames it, so that no half-written file is ever there."""
    unfinished = path.with_name(f"{path.name}.tmp")
    figure.savefig(unfinished, dpi=dpi, format="png")
    unfinished.replace(path)
