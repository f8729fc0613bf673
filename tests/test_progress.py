"""A command that is silent says what it does, and sizes and times are read at a glance."""

import threading
import time

import pytest

from xlstm_jax import progress
from xlstm_jax.progress import doing, duration, sized


def test_work_that_takes_long_is_named_within_two_seconds_and_again_later(monkeypatch):
    assert progress.FIRST < 2
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "AGAIN", 0.01)
    said, twice = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 2:
            twice.set()

    with doing("compiling", say):
        assert twice.wait(60)
    assert said[:2] == ["compiling ...", "compiling ... 0 s so far"]
    told = len(said)
    time.sleep(0.05)
    assert len(said) == told  # nothing behind the lines of what follows


def test_work_that_is_quick_says_nothing(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 60.0)
    said = []
    with doing("compiling", said.append):
        pass
    assert not said


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_730, "1.73 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (4_200_000, "4.2 MB"),
        (34_360_000_000, "34.4 GB"),
        (1_210_000_000_000, "1,210 GB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit_that_has_them(num_bytes, shown):
    assert sized(num_bytes) == shown


def test_a_time_that_is_not_known_is_not_invented():
    assert [duration(seconds) for seconds in (None, float("nan"), float("inf"))] == ["n/a"] * 3
