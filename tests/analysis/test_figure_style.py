"""What all figures have in common."""

import pytest
from matplotlib.figure import Figure

from xlstm_jax.analysis import figure_style


def test_28_things_are_told_apart_without_their_lines():
    """As the points of a figure, which no line joins."""
    styles = [figure_style.style(number) for number in range(4 * len(figure_style.COLOURS))]
    seen = {(style["color"], style["marker"], style["fillstyle"]) for style in styles}
    assert len(seen) == len(styles) == 28


@pytest.mark.parametrize(
    ("ends", "numbers"),
    [
        ((160e6, 7e9), ["200M", "500M", "1B", "2B", "5B"]),
        ((1e19, 1e24), ["1e19", "1e20", "1e21", "1e22", "1e23", "1e24"]),
        ((2.1e6, 2.9e6), ["2.2M", "2.4M", "2.6M", "2.8M"]),
    ],
)
def test_the_numbers_of_a_logarithmic_axis_are_few_and_short(ends, numbers):
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot(ends, (1, 2))
    figure_style.log_axis(axes.xaxis)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    shown = [
        (tick.get_loc(), tick.label1.get_text())
        for which in (axes.xaxis.get_major_ticks(), axes.xaxis.get_minor_ticks())
        for tick in which
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    assert [text for _, text in sorted(shown)] == numbers
