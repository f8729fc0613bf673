"""Roundings to bfloat16 do not add up along a sequence."""

import pytest

from benchmarks import long_sequences


@pytest.mark.slow
def test_the_error_is_that_of_three_roundings_everywhere():
    """The gate forgets nothing within 8,192 tokens, so h is the state's: the keys that enter C, C
    and h, each 1.7e-3.
    """
    first, *_, last = long_sequences.errors(8192, forget_bias=12)["h"]
    assert 2.6e-3 < first < 3.1e-3
    assert 2.6e-3 < last < 3.1e-3


@pytest.mark.slow
def test_without_them_the_kernel_is_exact():
    error = long_sequences.errors(1024, forget_bias=6, dtype="float32")["h"]
    assert max(error) < 2e-5
