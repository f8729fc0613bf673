"""The command: streams text, says how fast, keeps sessions; mistakes are one line."""

import jax
import numpy as np
import pytest

from tests.interop.test_interop import shapes_of
from xlstm_jax.config import Config, ModelConfig
from xlstm_jax.generation import __main__ as command
from xlstm_jax.training.checkpoints import write_params


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    config = ModelConfig(vocab_size=320, dim=16, num_blocks=1, num_heads=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes_of(config)
    )
    write_params(folder, Config(model=config), params)
    return str(folder)


def call(run, *arguments) -> int:
    return command.main(["generation", f"--checkpoint={run}", *arguments])


def test_the_text_goes_to_stdout_and_the_speed_to_stderr(run, capsys):
    assert call(run, "--prompt=def f(", "--max-new-tokens=20", "--temperature=2", "--seed=1") == 0
    first = capsys.readouterr()
    assert first.out.startswith("def f(") and len(first.out) > len("def f(") + 5
    assert "[read 7 tokens" in first.err and "tokens/s]" in first.err
    assert call(run, "--prompt=def f(", "--max-new-tokens=20", "--temperature=2", "--seed=1") == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.slow
def test_a_session_file_is_gone_on_from(run, tmp_path, capsys):
    options = [f"--session={tmp_path / 'session.npz'}", "--temperature=0", "--max_new_tokens=8"]
    assert call(run, "--prompt=ab", *options) == 0
    first = capsys.readouterr().out.rstrip("\n")
    assert call(run, "--prompt= more", *options) == 0
    assert "[read 5 tokens" in capsys.readouterr().err  # the first text was not read again
    assert first.startswith("ab")


def test_turns_share_one_state(run, monkeypatch, capsys):
    lines = iter(["one", "two", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert call(run, "--interactive", "--max-new-tokens=8", "--temperature=2") == 0
    counts = [
        int(line.split(",")[-1].split()[0])
        for line in capsys.readouterr().err.splitlines()
        if "so far" in line
    ]
    assert len(counts) == 2 and counts[1] > counts[0] + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature=warm"], "--temperature is 'warm'"),
        (["--temperature=-1"], "temperature is -1.0"),
        (["--top-q=1"], "top_q"),
        (["--step=7"], "no checkpoint of step 7"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, message):
    assert call(run, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_checkpoint_is_one_line(capsys, tmp_path):
    assert command.main(["generation", f"--checkpoint={tmp_path}"]) == 2
    assert "config.json" in capsys.readouterr().err
