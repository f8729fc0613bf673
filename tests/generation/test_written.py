"""What was written, as a notebook shows it."""

import numpy as np

from xlstm_jax.generation.generator import Written


def test_it_shows_the_texts_and_no_arrays():
    session = {"C": np.full((64, 64), 0.123)}
    shown = repr(Written(["a line\n", ""], [[1, 2, 3], [4]], [True, False], session))
    assert shown == ("Written(texts=['a line\\n', ''], tokens in each=[3, 1], ended=[True, False])")
