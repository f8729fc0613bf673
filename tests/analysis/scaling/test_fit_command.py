"""`python -m xlstm_jax.analysis.scaling fit`: tables in, numbers, intervals and figures out."""

import json

import pytest

from tests.analysis.scaling.synthetic import CHINCHILLA, isoflop_runs, runs
from tests.analysis.scaling.test_parametric import SMALL
from xlstm_jax.analysis.scaling import fitting
from xlstm_jax.analysis.scaling.__main__ import main


def call(*arguments) -> int:
    return main(["scaling", *map(str, arguments)])


def table(path, header, columns):
    rows = [",".join(map(repr, map(float, row))) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_fits_are_printed_and_written(tmp_path, monkeypatch, capsys):
    settings = fitting.Settings
    monkeypatch.setattr(
        "xlstm_jax.analysis.scaling.__main__.Settings",
        lambda **given: settings(huber_delta=1e-3, draws=10, grid=SMALL, **given),
    )
    losses = runs(CHINCHILLA, noise=0.002)
    path = table(tmp_path / "runs.csv", "N,tokens,loss", losses)
    output = tmp_path / "fits"
    arguments = [path, "--columns=params=N", "--form=plain,line", f"--output={output}"]
    assert call("fit", *arguments) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(output / "fits.json")
    assert "42 runs; fitting plain, line" in printed and "R2 0.99" in printed
    numbers = json.loads((output / "fits.json").read_text())["plain, "]["numbers"]
    assert numbers["alpha"]["value"] == pytest.approx(0.34, rel=0.05)
    low, high = numbers["alpha"]["interval"]
    assert low < numbers["alpha"]["value"] < high
    assert len(list(output.glob("*.png"))) == 2
    budget, params, loss = isoflop_runs(noise=0.001)
    path = table(tmp_path / "iso.csv", "budget,params,tokens,loss", (budget, params, params, loss))
    assert call("fit", path, "--form=isoflop") == 0
    printed = capsys.readouterr().out
    assert "best at 6e+18" in printed
    *_, named, line = printed.splitlines()
    assert named == "next:" and line.endswith(f" fit {path} --form=isoflop --output=runs/fits")


def test_parabolas_and_over_training_say_how_well_they_describe_the_runs(tmp_path):
    budget, params, loss = isoflop_runs(noise=0.001)
    path = table(tmp_path / "iso.csv", "budget,params,tokens,loss", (budget, params, params, loss))
    assert call("fit", path, "--form=isoflop", f"--output={tmp_path / 'isoflop'}") == 0
    lines = ("--form=overtraining", "--ratios=44,110", f"--output={tmp_path / 'lines'}")
    assert call("fit", "published", *lines) == 0
    for folder in ("isoflop", "lines"):
        fits = json.loads((tmp_path / folder / "fits.json").read_text())
        assert fits and all(0.9 < fit["quality"]["r2"] < 1 for fit in fits.values()), fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no action is given"),
        (["plot"], "'plot' is no action"),
        (["plan", "--output=x"], "--flops is missing"),
        (["plan", "--flops=1e12"], "--output is missing"),
        (["plan", "--flops=-1", "--output=x"], "--flops is '-1'"),
        (["plan", "--flops=1e3", "--output=x", "--preset=big"], "--preset is 'big'"),
        (["plan", "--flops=1e3", "--output=x", "--models=GPT"], "--models has 'GPT'"),
        (["plan", "--flops=1e3", "--output=x", "--counting=six"], "'six' is no way to count"),
        (["plan", "--flops=1e3", "--output=x", "--spread=1"], "one number above 1"),
        (["run"], "run takes one folder"),
        (["run", "none"], "has no plan.jsonl"),
        (["fit"], "no runs are given"),
        (["fit", "none.csv"], "does not exist"),
        (["fit", "published", "--form=spline"], "--form has 'spline'"),
        (["fit", "published", "--form=line", "--huber_delta=1"], "of no use with --form=line"),
        (["fit", "published", "--huber_delta=-1"], "--huber_delta is '-1'"),
        (["fit", "published", "--form=overtraining"], "--ratios is missing"),
        (["fit", "published", "--form=overtraining", "--ratios=9"], "fewer than two model sizes"),
        (["fit", "published", "--form=isoflop"], "has no budget"),
        (["fit", "published", "--columns=N"], "--columns has 'N'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_can_not_be_fitted_is_told_beside_what_can(tmp_path, capsys):
    """Of two families one has a budget whose loss bends downwards."""
    budget, params, loss = isoflop_runs()
    path = tmp_path / "runs.jsonl"
    rows = [
        {"model": model, "budget": b, "params": n, "tokens": b / n, "loss": at, "flops": b}
        for model, sign in (("good", 1), ("bad", -1))
        for b, n, at in zip(budget, params, 5 + sign * (loss - 3), strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert call("fit", path, "--form=isoflop") == 0
    printed = capsys.readouterr().out
    assert "isoflop params, good" in printed and "isoflop tokens, good" in printed
    assert "not fitted: isoflop, bad: the loss at 6e+18 FLOPs has no minimum" in printed
