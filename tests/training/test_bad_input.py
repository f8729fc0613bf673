"""Each mistake ends in one line that names the thing and the remedy, with exit status 2 and nothing
overwritten.
"""

import json
import os
import subprocess
import sys

import pytest

import eval as eval_command
import train as train_command
from tests.training.conftest import CONFIG_FILE, ROOT

MISTAKES = {
    "unknown key": (
        ["--config.model.dimm=8"],
        "unknown config key model.dimm; did you mean model.dim",
    ),
    "wrong type": (
        ["--config.model.dim=wide"],
        "config key model.dim is 'wide'; it must be of type int",
    ),
    "heads": (
        ["--config.model.dim=15"],
        "config key model.dim is 15, not divisible by model.num_heads 2",
    ),
    "position": (
        ["--config.model.slstm_positions=(2,)"],
        "model.slstm_positions has 2; positions count from 0",
    ),
    "missing data": (["--config.data.path=/no/such"], "data path '/no/such' does not exist"),
    "vocabulary": (
        ["--config.model.vocab_size=256"],
        "tokenizer 'byte' has 257 ids, but model.vocab_size is 256",
    ),
    "short data": (
        ["--config.data.context_length=100000"],
        "less than one sample of data.context_length 100000",
    ),
    "schedule": (
        ["--config.optimizer.decay_steps=1"],
        "optimizer.decay_steps is 1, before the end of the warm-up",
    ),
    "unknown flag": (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    "stray word": (["fast"], "argument 'fast' is not understood"),
    "init_from": (
        ["--config.checkpoint.init_from=/no/such"],
        "folder '/no/such' holds no checkpoints",
    ),
}


def fails(capsys, main, argv, *parts):
    """Runs a command; asserts that it ends as told at the top, with all parts in its one line."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_call_is_named_and_leaves_no_run(mistake, arguments, tmp_path, capsys):
    more, message = MISTAKES[mistake]
    fails(capsys, train_command.main, arguments(tmp_path / "run", *more), message)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_missing_workdir_is_named(arguments, capsys):
    argv = [argument for argument in arguments("x") if not argument.startswith("--workdir")]
    fails(
        capsys,
        train_command.main,
        argv,
        "--workdir is missing; give for example --workdir=runs/NAME",
    )


@pytest.mark.parametrize("config", [[], ["--config="]])
def test_no_config_file_is_named(config, tmp_path, capsys):
    fails(
        capsys,
        train_command.main,
        ["train.py", f"--workdir={tmp_path}", *config],
        "--config is missing",
        "configs/quickstart.py",
    )


def test_a_config_file_that_does_not_exist_is_named(tmp_path, capsys):
    argv = ["train.py", "--config=configs/nothing.py", f"--workdir={tmp_path}"]
    fails(capsys, train_command.main, argv, "'configs/nothing.py' does not exist")


def test_a_slip_in_a_config_file_is_named_with_its_line(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(CONFIG_FILE.read_text() + "\n\nget_config().model.dimm = 3\n")
    line = len(file.read_text().splitlines())
    argv = ["train.py", f"--config={file}", f"--workdir={tmp_path}/run"]
    fails(
        capsys, train_command.main, argv, f"config file {file}, line {line}: AttributeError", "dimm"
    )


def test_empty_data_are_named(arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    argv = arguments(tmp_path / "run", f"--config.data.path={tmp_path}/empty")
    fails(capsys, train_command.main, argv, f"data path '{tmp_path}/empty' is empty")


def test_data_that_are_no_text_are_named(arguments, tmp_path, capsys):
    (tmp_path / "picture.dat").write_bytes(bytes(range(256)))
    argv = arguments(tmp_path / "run", f"--config.data.path={tmp_path}/picture.dat")
    fails(capsys, train_command.main, argv, "is no text")


def test_missing_data_of_the_papers_configs_are_named_with_the_command_that_prepares_them(
    tmp_path, capsys
):
    argv = ["train.py", "--config=configs/xlstm_1.3b.py", f"--workdir={tmp_path}/run"]
    fails(
        capsys, train_command.main, argv, "data/slimpajama-gpt2", "python -m xlstm_jax.data.prepare"
    )


def test_a_workdir_of_another_configuration_is_refused_and_stays_as_it_was(
    tiny, arguments, tmp_path, capsys
):
    (tmp_path / "config.json").write_text(tiny().to_json())
    fails(
        capsys,
        train_command.main,
        arguments(tmp_path, "--config.model.dim=32", "--config.train.steps=7"),
        "model.dim is 16 there and 32 here",
        "train.steps is 6 there and 7 here",
        "Give another --workdir",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == tiny().to_json()


def test_a_workdir_with_a_broken_config_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    fails(capsys, train_command.main, arguments(tmp_path), "config.json can't be used")


def test_a_workdir_with_remains_of_something_else_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("mine")
    fails(capsys, train_command.main, arguments(tmp_path), "holds metrics.jsonl but no config.json")
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_a_workdir_that_is_a_file_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    fails(capsys, train_command.main, arguments(tmp_path / "file"), "is a file; give a folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_an_evaluation_with_one_line(
    arguments, tmp_path, capsys, no_op_step
):
    assert train_command.main(arguments(tmp_path, "--config.train.steps=2")) == 0
    for path in (tmp_path / "checkpoints/2").glob("params/**/d/*"):
        path.write_bytes(b"")
    capsys.readouterr()
    fails(
        capsys, eval_command.main, ["eval.py", f"--workdir={tmp_path}"], "checkpoints/2' is damaged"
    )


def test_a_profile_of_no_steps_is_named(arguments, tmp_path, capsys):
    fails(
        capsys,
        train_command.main,
        arguments(tmp_path / "run", "--profile=12:10"),
        "--profile is '12:10'; it must be FIRST:LAST",
    )


def test_evaluating_what_is_no_run_is_named(tmp_path, capsys):
    fails(
        capsys,
        eval_command.main,
        ["eval.py", f"--workdir={tmp_path}"],
        "holds no config.json, so it is no run and no other checkpoint",
    )
    fails(capsys, eval_command.main, ["eval.py"], "--workdir is missing")


def test_evaluating_a_step_that_is_no_number_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({}))
    fails(
        capsys,
        eval_command.main,
        ["eval.py", f"--workdir={tmp_path}", "--step=last"],
        "--step is 'last'",
    )


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        train_command.main(["train.py", "--help"])
    assert end.value.code == 0 and "--workdir" in capsys.readouterr().out


@pytest.mark.slow
def test_the_process_itself_ends_with_one_line_and_status_2(arguments, tmp_path):
    assert train_command.main(arguments(tmp_path)) == 0
    for path in (tmp_path / "checkpoints/6").glob("params/**/d/*"):
        path.write_bytes(b"")
    typo, damage = (
        arguments(tmp_path, "--config.model.dimm=8"),
        ["eval.py", f"--workdir={tmp_path}"],
    )
    for argv, message in ((typo, "unknown config key model.dimm"), (damage, "checkpoint ")):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith(
            f"error: {message}"
        ), done.stderr
