"""What all figures have in common."""

from xlstm_jax.analysis import figure_style


def test_fourteen_things_are_told_apart_without_their_lines():
    """As the points of a figure, which no line joins."""
    styles = [figure_style.style(number) for number in range(2 * len(figure_style.COLOURS))]
    seen = {(style["color"], style["marker"], style["fillstyle"]) for style in styles}
    assert len(seen) == len(styles) == 14
