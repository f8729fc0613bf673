"""How steps grow with the text: every mixer that carries something along it is measured, and the
exponent is the one of the power law.
"""

import pytest

from benchmarks import slopes
from xlstm_jax.models import mixers


def test_the_exponent_is_that_of_the_power_law():
    lengths = (256, 512, 1024)
    assert slopes.exponent(lengths, [3 * n for n in lengths]) == pytest.approx(1)
    assert slopes.exponent(lengths, [0.1 * n**2 for n in lengths]) == pytest.approx(2)


def test_every_mixer_with_a_memory_is_measured():
    assert set(mixers.names()) - set(slopes.names()) == {"mlp", "rwkv4_channel"}


def test_a_row_has_time_and_memory_by_length():
    row = slopes.slope_of("attention", (32, 128), 1, dim=16, num_blocks=1)
    assert row["lengths"] == [32, 128] and len(row["seconds"]) == 2
    # in the plan of the compiled program a longer text takes more, attention more than linearly
    assert sorted(row["temporaries"]) == row["temporaries"]
    assert row["exponent"]["temporaries"] > 1
    cells = slopes.line(row).count("|")
    assert cells == slopes.heading(row["lengths"]).splitlines()[0].count("|")
