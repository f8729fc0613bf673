"""Times of inference: the rate and the overhead of synthetic times come back, intervals hold them,
what can't be fitted is refused.
"""

import json

import numpy as np
import pytest

from xlstm_jax.analysis.scaling import __main__ as command
from xlstm_jax.analysis.scaling.inference import (
    FIRST_TOKEN,
    TOKEN,
    fit_all,
    fit_inference,
    inference_intervals,
    quality,
    read_timings,
    table_lines,
    timing_of,
)
from xlstm_jax.errors import UserError

RATE, OVERHEAD = 3.3e14, 2.4e-3  # of the size that arXiv 2510.02228 finds on an H100
WORK = np.geomspace(1e10, 1e14, 15)


def times(noise: float = 0.0, seed: int = 0, rate: float = RATE, overhead: float = OVERHEAD):
    noisy = np.exp(noise * np.random.default_rng(seed).normal(size=len(WORK)))
    return (WORK / rate + overhead) * noisy


@pytest.mark.parametrize(("rate", "overhead"), [(RATE, OVERHEAD), (1e11, 0.0), (4e12, 1e-5)])
def test_times_without_noise_give_back_what_they_were_made_with(rate, overhead):
    fit = fit_inference(WORK, times(rate=rate, overhead=overhead))
    assert fit.rate == pytest.approx(rate, rel=1e-9)
    assert fit.overhead == pytest.approx(overhead, rel=1e-7, abs=1e-12)
    assert fit(1e13) == pytest.approx(1e13 / rate + overhead)


def test_short_times_count_as_much_as_long_ones():
    """Residuals are relative: half a percent more of the longest time does not move the
    overhead, which is a thousandth of it.
    """
    seconds = times()
    seconds[-1] *= 1.005
    assert fit_inference(WORK, seconds).overhead == pytest.approx(OVERHEAD, rel=0.01)


def test_intervals_hold_the_truth():
    held = []
    for seed in range(20):
        found = inference_intervals(WORK, times(noise=0.03, seed=seed), draws=100)
        held.append((RATE in found.rate, OVERHEAD in found.overhead))
        assert found.rate.high / found.rate.low < 1.3
    assert (np.sum(held, axis=0) >= 15).all(), held


def test_numbers_are_never_negative():
    """Times that fall with the work for a while, as small batches' do, would give a negative
    overhead or rate to a plain line.
    """
    slower = WORK / RATE - 1e-6
    assert fit_inference(WORK[5:], slower[5:]).overhead == 0


def test_quality_is_in_logarithms():
    seconds = times(noise=0.02)
    assert quality(fit_inference(WORK, seconds), WORK, seconds).rmse == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(
    ("work", "seconds", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], "three times at least; there are 2"),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0], "finite numbers above 0"),
        ([2.0, 2.0, 2.0], [1.0, 1.1, 0.9], "all times are of the same work"),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "do not grow with the work"),
    ],
)
def test_what_has_no_rate_is_refused(work, seconds, message):
    with pytest.raises(UserError, match=message):
        fit_inference(work, seconds)


def row(kind: str, seconds: float, **more) -> dict:
    about = {"kind": kind, "model": "xLSTM[1:0]", "params": 1e6, "batch": 2, "prefill": 256}
    return {**about, "seconds": seconds, **more}


def test_a_row_without_work_takes_what_its_parameters_say():
    prompt = timing_of(row(FIRST_TOKEN, 1.0), "here")
    assert prompt.work == prompt.flops == 2 * 1e6 * 256 * 2
    step = timing_of(row(TOKEN, 1.0), "here")
    assert step.work == step.bytes == 4e6
    assert timing_of(row(TOKEN, 1.0, bytes=7e6), "here").work == 7e6


def test_each_model_size_and_kind_is_fitted_apart():
    rows = []
    for scale in (1, 2):
        for work, seconds in zip(WORK, times(rate=RATE / scale), strict=True):
            rows.append(row(FIRST_TOKEN, seconds, params=1e6 * scale, flops=work))
    rows.append(row(TOKEN, 1e-3))
    results = fit_all([timing_of(one, "here") for one in rows], draws=10)
    assert [one.params for one in results] == [1e6, 2e6, 1e6]
    assert results[1].fit.rate == pytest.approx(RATE / 2)
    lines = table_lines(results)
    assert lines[0][:3] == ["time to first token", "xLSTM[1:0]", "1,000,000"]
    assert "3.3e+14 FLOP/s" in lines[0][3] and "2.4 ms" in lines[0][4]
    assert "not fitted: a rate and an overhead need three times" in lines[2][3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no record"),
        (json.dumps(row("prompt", 1.0)), "kind is 'prompt'; it must be first_token or token"),
        (json.dumps(row(TOKEN, -1.0)), "seconds is -1.0; it must be a number above 0"),
        (json.dumps(row(TOKEN, 1.0, batch=None)), "batch is None"),
    ],
)
def test_a_line_that_is_no_timing_is_named(tmp_path, line, message):
    (tmp_path / "times.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_timings([str(tmp_path / "times.jsonl")])


def test_the_command_prints_the_fits_and_draws_them(tmp_path, capsys):
    rows = [
        row(kind, seconds, **{work_name: work})
        for kind, work_name in ((FIRST_TOKEN, "flops"), (TOKEN, "bytes"))
        for work, seconds in zip(WORK, times(noise=0.01), strict=True)
    ]
    (tmp_path / "times.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    argv = ["scaling", "inference", str(tmp_path / "times.jsonl"), f"--output={tmp_path / 'out'}"]
    assert command.main(argv) == 0
    output = capsys.readouterr().out
    assert "time of a step; xLSTM[1:0]; 1,000,000" in output and "bytes/s" in output
    assert (tmp_path / "out" / "inference.png").stat().st_size > 10_000
    assert command.main(["scaling", "inference", str(tmp_path / "nothing.jsonl")]) == 2
    assert "nothing.jsonl' can't be read: No such file or directory\n" in capsys.readouterr().err
