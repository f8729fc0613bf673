"""A run of a task without text: the perplexity suite gives the task's own summary, and whatever
needs text is refused by name before any work.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

import eval as command
from xlstm_jax.config import load, task_of
from xlstm_jax.evaluation.suites import SUITES
from xlstm_jax.generation import __main__ as generation
from xlstm_jax.interop import __main__ as interop
from xlstm_jax.runs.checkpoints import write_params
from xlstm_jax.runs.params import abstract_params
from xlstm_jax.training.console import next_commands

FORMAL = pathlib.Path(__file__).parents[2] / "configs" / "formal.py"


def formal_config():
    overrides = {
        "model.dim": 16,
        "task.formal.lengths": (3, 8),
        "task.formal.held_out_lengths": (5, 9),
        "task.formal.held_out_samples": 10,
        "task.formal.test_samples": 10,
        "data.context_length": 8,
        "eval.batch_size": 4,
    }
    return load(f"{FORMAL}:parity-xlstm_1_0", overrides)


@pytest.fixture(scope="module")
def formal_run(tmp_path_factory) -> str:
    config, rng = formal_config(), np.random.default_rng(3)
    task = task_of(config)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        abstract_params(lambda: task.init(task.model(), jax.random.key(0))),
    )
    folder = tmp_path_factory.mktemp("formal") / "run"
    write_params(folder, config, params)
    return str(folder)


def test_the_perplexity_suite_gives_the_tasks_own_summary(formal_run, tmp_path, capsys):
    assert command.main(["eval.py", f"--workdir={formal_run}", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "validation, step 0: " in printed and "scaled accuracy" in printed
    assert "next:" not in printed  # no other suite and no program of text takes it
    found = json.loads((tmp_path / "results.json").read_text())["suites"]["perplexity"]
    summary = found["held_out"]["validation"]
    # each of the ten answers counts once, though the last batch of eight is filled up
    assert 0 < summary["accuracy"] < 1
    assert summary["accuracy"] == pytest.approx(round(10 * summary["accuracy"]) / 10)
    assert summary["scaled_accuracy"] == pytest.approx(2 * summary["accuracy"] - 1)
    row = f"| validation | scaled_accuracy | {summary['scaled_accuracy']:.4f} |"
    text = (tmp_path / "results.md").read_text()
    assert "\n## The task formal\n" in text and "perplexity" not in text
    assert row in text and "| test | scaled_accuracy | " in text
    assert "| guess: chance | accuracy | 0.5000 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=generation"], "--suite has 'generation', which needs a model of text"),
        (["--suite=perplexity,extrapolation"], "--suite has 'extrapolation'"),
        (["--split=train"], "--split is 'train', but the task 'formal' has its own held-out data"),
        (["--max_tokens=5"], "--max_tokens is 5, but the task 'formal'"),
    ],
)
def test_what_needs_text_is_refused_by_name(formal_run, monkeypatch, capsys, arguments, message):
    for name in SUITES:
        monkeypatch.setitem(SUITES, name, None)  # none is called
    assert command.main(["eval.py", f"--workdir={formal_run}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("main", [generation.main, interop.main])
def test_other_programs_refuse_it_with_what_to_do_instead(formal_run, tmp_path, capsys, main):
    arguments = {
        generation.main: ["generation", f"--checkpoint={formal_run}"],
        interop.main: ["interop", "export", f"--source={formal_run}", f"--output={tmp_path / 'x'}"],
    }
    assert main(arguments[main]) == 2
    error = capsys.readouterr().err
    assert "was trained for the task 'formal', whose model has no text" in error
    assert f"eval.py --workdir={formal_run}`" in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_after_training_only_commands_that_work_are_named(formal_run):
    config = formal_config()
    lines = next_commands(formal_run, config, task_of(config).writes_text)
    assert any(f"eval.py --workdir={formal_run}" in line for line in lines)
    assert not any("generation" in line for line in lines)
