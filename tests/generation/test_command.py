"""The command: streams text, says how fast, keeps sessions; mistakes are one line."""

import io
import shlex
import sys

import jax
import numpy as np
import pytest

from tests.interop.test_interop import shapes_of
from xlstm_jax.command_line import printable
from xlstm_jax.config import Config, ModelConfig
from xlstm_jax.generation import Generator, Sampling
from xlstm_jax.generation import __main__ as command
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.runs.checkpoints import write_params


def written_run(folder, seed: int) -> str:
    config = ModelConfig(vocab_size=320, dim=16, num_blocks=1, mixers={"mlstm": {"num_heads": 2}})
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes_of(config)
    )
    write_params(folder, Config(model=config), params)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return written_run(tmp_path_factory.mktemp("run") / "run", 0)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory) -> str:
    """With the same model and other parameters, as after some steps."""
    return written_run(tmp_path_factory.mktemp("other") / "run", 1)


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
def test_with_64_bit_types_the_text_is_the_same(run, tmp_path, capsys):
    options = ["--prompt=ab", "--temperature=0", "--max-new-tokens=4"]
    assert call(run, *options) == 0
    expected = capsys.readouterr().out
    with jax.enable_x64(True):
        for session in ("new", "gone on from"):
            assert call(run, *options, f"--session={tmp_path / 'session.npz'}") == 0, session
            if session == "new":
                assert expected.startswith(capsys.readouterr().out.removesuffix("\n"))


def test_a_session_file_is_gone_on_from(run, tmp_path, capsys):
    """Two calls write what one writes; the text is not read again."""
    options = [f"--session={tmp_path / 'a b é.npz'}", "--temperature=2"]
    assert call(run, "--prompt=ab", *options, "--max-new-tokens=9") == 0
    first = capsys.readouterr()
    *_, named, line = first.err.splitlines()
    assert (named, shlex.split(line)[-2:]) == ("next:", [f"--checkpoint={run}", options[0]])
    first = first.out.removesuffix("\n")
    assert call(run, *options, "--max-new-tokens=11") == 0
    second = capsys.readouterr()
    assert "[read 0 tokens" in second.err
    assert call(run, "--prompt=ab", "--temperature=2", "--max-new-tokens=20") == 0
    # a session's last characters wait where more could make others of them
    whole = capsys.readouterr().out
    assert whole.startswith(first + second.out.removesuffix("\n")) and len(second.out) > 5


def test_a_session_belongs_to_its_checkpoint(run, other_run, tmp_path, capsys):
    options = [f"--session={tmp_path / 'session.npz'}", "--temperature=2", "--max-new-tokens=2"]
    assert call(run, "--prompt=ab", *options) == 0
    before = (tmp_path / "session.npz").read_bytes()
    capsys.readouterr()
    assert call(other_run, *options) == 2
    error = capsys.readouterr().err
    assert f"is of other parameters (of step 0 of {run})" in error and error.count("\n") == 1
    assert (tmp_path / "session.npz").read_bytes() == before


def converse(run, monkeypatch, content: bytes, *arguments) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    return call(run, "--interactive", "--temperature=2", *arguments)


def test_turns_share_one_state_and_put_nothing_into_the_text(run, monkeypatch, capsys):
    assert converse(run, monkeypatch, b"one\ntwo\n", "--max-new-tokens=8") == 0
    shown = capsys.readouterr()
    counts = [
        int(line.split(",")[-1].split()[0]) for line in shown.err.splitlines() if "so far" in line
    ]
    assert len(counts) == 2 and counts[1] > counts[0] + 3
    # the same as reading and writing by hand
    opened = open_checkpoint(run)
    generator = Generator(opened.model, opened.params, opened.tokenizer)
    session, text = None, ""
    for turn, line in enumerate(("one", "two")):
        written = generator.write(
            generator.read([line], session), 8, sampling=Sampling(temperature=2.0), seeds=[turn]
        )
        session = written.session
        text += line + written.texts[0] + generator.held(session)[0]
    assert shown.out == printable(text)


def test_a_prompt_is_the_first_turn(run, monkeypatch, capsys):
    assert converse(run, monkeypatch, b"two\n", "--max-new-tokens=8", "--prompt=one") == 0
    with_prompt = capsys.readouterr().out
    assert converse(run, monkeypatch, b"one\ntwo\n", "--max-new-tokens=8") == 0
    assert capsys.readouterr().out == with_prompt


def test_what_was_said_before_a_mistake_is_kept(run, monkeypatch, tmp_path, capsys):
    """The first turn was saved when the second one was no text."""
    file = tmp_path / "session.npz"
    lines = iter(["one", "a\udcff"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    options = ("--interactive", "--temperature=2", "--max-new-tokens=8", f"--session={file}")
    assert call(run, *options) == 2
    assert "the line is not UTF-8" in capsys.readouterr().err and file.exists()


def test_control_characters_do_not_reach_the_terminal(run, capsys):
    assert call(run, "--prompt=\x1b[2J", "--temperature=2", "--max-new-tokens=60") == 0
    text = capsys.readouterr().out
    assert text.startswith(r"\x1b[2J")
    assert not [c for c in text if ord(c) < 32 and c not in "\t\n" or 127 <= ord(c) < 160]


def test_a_switch_may_be_turned_off_and_a_value_may_look_like_a_flag(run, capsys):
    options = ("--interactive=false", "--temperature=2", "--max-new-tokens=1")
    assert call(run, *options, "--prompt", "-5 + 3 --top-k=") == 0
    assert capsys.readouterr().out.startswith("-5 + 3 --top-k=")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature=warm"], "--temperature is 'warm'"),
        (["--temperature=-1"], "temperature is -1.0"),
        (["--temperature=nan"], "temperature is nan"),
        (["--top-q=1"], "top_q"),
        (["--step=7"], "no checkpoint of step 7"),
        (["--step=²"], "--step is '²'; it must be a whole number of at least 0"),
        (["--samples=0"], "--samples is '0'; it must be a whole number from 1"),
        (["--samples=-1"], "--samples is '-1'"),
        (["--interactive", "--samples=2"], "--samples is 2, but with --interactive"),
        (["--interactive=perhaps"], "--interactive is 'perhaps'"),
        (["--max-new-tokens=-3"], "--max_new_tokens is '-3'; it must be a whole number of at le"),
        (["--max-new-tokens=1.5"], "--max_new_tokens is '1.5'"),
        (["--top-k=0"], "--top_k is '0'; it must be a whole number of at least 1"),
        (["--top-p=0"], "top_p is 0.0"),
        (["--seed=4294967296"], "--seed is '4294967296'; it must be a whole number from 0 to 429"),
        (["--seed=-1"], "--seed is '-1'"),
        (["--prompt=a\udcff"], "--prompt is not UTF-8: at character 2"),
        (["--stop=\udcff"], "--stop is not UTF-8"),
        (["--stop="], "--stop is empty"),
        (["--session="], "--session is empty"),
        (["--session={folder}"], "is a folder; give a file"),
        (["--session={folder}/no/session.npz"], "there is no folder"),
        (["--session={folder}/text.txt"], "text.txt' is no session, or is damaged"),
        (["--session=/dev/null"], "is no file that can be written"),
        (["stray"], "argument 'stray' is not understood"),
    ],
)
def test_mistakes_are_one_line_before_any_text(run, tmp_path, capsys, arguments, message):
    (tmp_path / "text.txt").write_text("no session")
    assert call(run, *(argument.replace("{folder}", str(tmp_path)) for argument in arguments)) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_no_checkpoint_is_one_line(capsys, tmp_path):
    assert command.main(["generation", f"--checkpoint={tmp_path}"]) == 2
    assert "config.json" in capsys.readouterr().err
