"""eval.py from the command line: results as JSON, Markdown and figures; mistakes are one line."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

import eval as command
from xlstm_jax.evaluation import speed
from xlstm_jax.evaluation.downstream import PAPER_TASKS, paper_average
from xlstm_jax.evaluation.paper_values import PALOMA, PALOMA_SOURCES, SIZES, TASK_COLUMNS, TASKS

ROOT = pathlib.Path(__file__).parents[2]


def call(run_folder, *arguments) -> int:
    return command.main(["eval.py", f"--workdir={run_folder}", *arguments])


@pytest.mark.slow
def test_results_are_written_suite_by_suite(run_folder, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    assert call(run_folder, "--suite=perplexity", "--max_tokens=300", output) == 0
    arguments = ["--contexts=16,32", "--lengths=2,4", "--batches=1,2", "--max_tokens=300"]
    assert call(run_folder, "--suite=extrapolation,generation", *arguments, output) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]
    assert list(results) == ["perplexity", "extrapolation", "generation"]
    assert results["perplexity"]["tokens"] == 300
    assert [curve["tokens"] for curve in results["extrapolation"]["contexts"]] == [288, 288]
    assert [timing["tokens"] for timing in results["generation"]["lengths"]] == [2, 4]
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "## perplexity" in markdown and "paper: xLSTM[7:1] 1.3B" in markdown
    for name in ("extrapolation.png", "generation.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000 and name in markdown
    assert "context     32" in capsys.readouterr().out


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(run_folder, tmp_path):
    arguments = [
        "--suite=perplexity,extrapolation",
        "--contexts=16,32",
        "--max_tokens=300",
        "--batch_size=8",
    ]
    assert call(run_folder, *arguments, f"--output={tmp_path / 'one'}") == 0
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    program = [
        sys.executable,
        "eval.py",
        f"--workdir={run_folder}",
        *arguments,
        f"--output={tmp_path / 'eight'}",
    ]
    subprocess.run(program, cwd=ROOT, env=environment, check=True, capture_output=True)
    one, eight = (
        json.loads((tmp_path / name / "results.json").read_text())["suites"]
        for name in ("one", "eight")
    )
    assert eight["perplexity"]["about"]["devices"] == "8 x cpu"
    assert eight["perplexity"]["tokens"] == one["perplexity"]["tokens"] == 300
    assert eight["perplexity"]["nats"] == pytest.approx(one["perplexity"]["nats"], rel=1e-5)
    for sharded, whole in zip(
        eight["extrapolation"]["contexts"], one["extrapolation"]["contexts"], strict=True
    ):
        assert sharded["nats"] == pytest.approx(whole["nats"], rel=1e-5)


def test_results_lie_in_the_runs_folder_by_step(run_folder, capsys):
    assert call(run_folder, "--max_tokens=100") == 0
    assert (run_folder / "eval" / "0" / "results.md").is_file()
    assert "validation, step 0: loss" in capsys.readouterr().out


def test_a_further_held_out_set_is_scored_by_its_name(run_folder, tmp_path):
    """Beside the results of the run's validation split, not instead of them."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "more.txt").write_text("another text")
    config["data"]["validation_sets"] = f"more={tmp_path / 'more.txt'}"
    (run / "config.json").write_text(json.dumps(config))
    assert call(run, "--max_tokens=100") == call(run, "--split=more") == 0
    results = json.loads((run / "eval" / "0" / "results.json").read_text())["suites"]
    assert {name: values["tokens"] for name, values in results.items()} == {
        "perplexity": 100,
        "perplexity/more": 13,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=speed"], "--suite has 'speed'"),
        (["--suite=paloma"], "--paloma is missing"),
        (["--contexts=1k"], "--contexts is '1k'"),
        (["--split=test"], "there is no split 'test'; there are train, validation"),
        (["--suite=extrapolation"], "less than one window"),
    ],
)
def test_mistakes_are_one_line(run_folder, capsys, arguments, message):
    assert call(run_folder, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_end_of_memory_is_marked(monkeypatch):
    def runner(model, params, batch, space):
        def run(count):
            if batch > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        return run

    monkeypatch.setattr(speed, "_runner", runner)
    timings = speed.time_batches(None, None, (1, 2, 4, 8))
    assert [(timing.batch, timing.seconds is None) for timing in timings] == [
        (1, False),
        (2, False),
        (4, True),
    ]


def test_the_papers_average_is_the_mean_of_its_six_accuracies():
    for values in (row for models in TASKS.values() for row in models.values()):
        results = {
            task: {f"{metric},none": value / 100}
            for (task, metric), value in zip(PAPER_TASKS.items(), values[1:-1], strict=True)
        }
        assert paper_average(results) == pytest.approx(values[-1], abs=0.006)
        assert len(values) == len(TASK_COLUMNS)
    assert paper_average({"piqa": {"acc,none": 0.5}}) is None
    assert all(
        len(row) == len(PALOMA_SOURCES) for models in PALOMA.values() for row in models.values()
    )
    assert set(SIZES.values()) == set(TASKS) == set(PALOMA)
