"""Plans: which sizes, how many tokens, which commands; and their runs, one after the other."""

import json

import pytest

from xlstm_jax import config_files
from xlstm_jax.analysis.scaling.plan import Grid, arguments, plan_series, read_plan, write_plan
from xlstm_jax.analysis.scaling.reading import read
from xlstm_jax.analysis.scaling.running import run_plan
from xlstm_jax.config import load
from xlstm_jax.errors import UserError
from xlstm_jax.interrupts import Preempted

FILE = "configs/scaling.py"


@pytest.fixture(scope="module")
def planned():
    series = config_files.series(FILE, "cpu")
    return plan_series(FILE, series, [3e13, 1e13], "published", Grid(sizes=4))


def test_each_run_spends_its_budget_on_its_tokens(planned):
    assert [run.budget for run in planned] == 8 * [1e13] + 8 * [3e13]
    for run in planned:
        config = load(run.config, run.overrides)
        assert run.tokens == run.steps * config.data.batch_size * config.data.context_length
        assert run.flops == pytest.approx(run.budget, rel=0.5 / run.steps)
        assert config.train.steps == config.eval.every == run.steps
        assert config.optimizer.learning_rate == run.learning_rate


@pytest.mark.parametrize("family", ["xLSTM[1:0]", "Llama"])
def test_sizes_lie_on_both_sides_of_the_expected_best(planned, family):
    runs = [run for run in planned if run.model == family and run.budget == 1e13]
    ratios = [run.tokens / run.params for run in runs]
    assert len({run.params for run in runs}) == 4
    assert max(ratios) > 2 * 20 and min(ratios) < 20 / 2


def test_learning_rates_are_the_published_ones():
    for variant, rate in (("xlstm_7b-768x12", 3e-3), ("xlstm_7b-1280x24", 2e-3),
                          ("llama-1280x24", 1e-3), ("llama-2560x32", 7e-4)):  # fmt: skip
        assert load(f"{FILE}:dclm-{variant}").optimizer.learning_rate == rate
    with pytest.raises(UserError, match="D 8192, for which no peak learning rate is published"):
        load(f"{FILE}:dclm-llama-8192x32")


def test_a_budget_that_no_shape_fits_is_refused():
    series = config_files.series(FILE, "cpu")
    with pytest.raises(UserError, match=r"has 0 of the 5 sizes that 1e\+20 FLOPs need"):
        plan_series(FILE, series, [1e20], "model", Grid())


def test_a_plan_is_written_read_and_never_replaced(planned, tmp_path):
    write_plan(tmp_path, planned, "python train.py")
    write_plan(tmp_path, planned, "python train.py")  # the same again
    assert read_plan(tmp_path) == planned
    first = (tmp_path / "commands.sh").read_text().splitlines()[0]
    assert first.startswith("python train.py --config=configs/scaling.py:cpu-")
    assert f"--config.train.steps={planned[0].steps}" in first
    with pytest.raises(UserError, match="is another plan"):
        write_plan(tmp_path, planned[:3], "python train.py")


def test_what_is_done_is_not_done_again_and_what_failed_is_named(planned, tmp_path, capsys):
    write_plan(tmp_path, planned[:3], "python train.py")
    calls = []

    def train(call):
        calls.append(call)
        run = planned[:3][[arguments(tmp_path, run) for run in planned[:3]].index(call)]
        folder = tmp_path / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        if run is planned[1]:
            return 2
        event = {"step": run.steps, "split": "validation", "loss": 2.0}
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        return 0

    assert run_plan(tmp_path, most=1, train=train) == []
    assert "held-out loss 2.0000; 1 of 1 done" in capsys.readouterr().out
    assert run_plan(tmp_path, train=train) == [planned[1].name]
    assert len(calls) == 3
    found = read(str(tmp_path))
    assert [(run.budget, run.loss, run.flops) for run in found.runs] == [
        (run.budget, 2.0, run.flops) for run in (planned[0], planned[2])
    ]
    assert len(found.unfinished) == 1
    with pytest.raises(Preempted, match="the same command goes on"):
        run_plan(tmp_path, train=lambda call: 130)
