"""How all figures look: colours, marks, axes, ticks."""

import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which are told apart by colour-blind eyes too; marks differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvP*"
BLUE, ORANGE = COLOURS[:2]
DPI = 150


def colour(number: int) -> str:
    """Of the first, second, ... thing in a figure; from the eighth on they come again."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Like `colour`."""
    return MARKERS[number % len(MARKERS)]


def style(number: int) -> dict[str, Any]:
    """Of a curve: those whose colours come again are dashed."""
    return {
        "color": colour(number),
        "marker": marker(number),
        "linestyle": "-" if number < len(COLOURS) else "--",
        "markersize": 5,
        "linewidth": 1.2,
    }


def dress(axes: Axes, legend_columns: int = 1) -> None:
    """A faint grid, no box, a legend where something has a label."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, ncols=legend_columns)


def plain_numbers() -> FuncFormatter:
    """Ticks as 2.5 and 3,000, where logarithmic axes write powers of ten."""
    return FuncFormatter(lambda value, _: f"{value:,.10g}")


def save(figure: Figure, path: pathlib.Path, dpi: int = DPI) -> None:
    """Writes a PNG beside and renames it, so that no half-written file is ever there."""
    unfinished = path.with_name(f"{path.name}.tmp")
    figure.savefig(unfinished, dpi=dpi, format="png")
    unfinished.replace(path)
