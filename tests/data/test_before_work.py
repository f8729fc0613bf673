"""What is wrong with a command is said before work that costs minutes, and the advice that it gives
can be followed.
"""

import json
import re

import pytest

from tests.data.conftest import jsonl, write_documents
from xlstm_jax.data import hub, inspect, prepare, shards


def run(source, output, *more, tokenizer="byte"):
    argv = ["prepare", f"--source={source}", f"--tokenizer={tokenizer}", f"--output={output}"]
    return prepare.main([*argv, "--workers=1", *more])


def error_of(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "B/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def source(tmp_path):
    for number in range(4):
        write_documents(tmp_path / f"in/{number}.jsonl", [f"text {number}"])
    return tmp_path / "in"


@pytest.fixture
def no_work(monkeypatch):
    def submit(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(prepare.Workers, "submit", submit)


def test_without_held_out_files_nothing_is_begun_and_the_advice_works(source, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare.Workers, "submit", None)
        assert run(source, tmp_path / "out") == 2
    assert "give --holdout-every=N to hold out every N-th of 4 files" in error_of(capsys)
    assert not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out", "--holdout-every=2") == 0
    assert shards.read_manifest(str(tmp_path / "out"), "validation").documents == 2


def test_a_single_file_in_a_folder_is_not_trained_and_tested_on(tmp_path, capsys, no_work):
    write_documents(tmp_path / "in/a.jsonl", ["text"])
    assert run(tmp_path / "in", tmp_path / "out") == 2
    assert "of one file none can be held out; give --split=train" in error_of(capsys)


def test_a_wrong_field_can_be_mended_with_the_same_folder(source, tmp_path, capsys):
    for file in source.iterdir():
        file.write_bytes(jsonl([file.name], "content"))
    assert run(source, tmp_path / "out", "--split=train") == 2
    assert "no 'text' among content, id; name the field with --field" in error_of(capsys)
    assert run(source, tmp_path / "out", "--split=train", "--field=content") == 0


def test_a_source_without_any_text_leaves_the_folder_free(source, tmp_path, capsys):
    for file in source.iterdir():
        file.write_bytes(jsonl([file.name], "content"))
    # the first file does not tell that the field is a wrong one
    (source / "0.jsonl").write_text('{"text": "", "content": ""}')
    assert run(source, tmp_path / "out", "--split=train") == 2
    assert "no document was found" in error_of(capsys)
    assert (tmp_path / "out/train/report.jsonl").exists()
    assert run(source, tmp_path / "out", "--split=train", "--field=content") == 0


def test_fewer_tokens_than_asked_for_are_told(source, tmp_path, capsys):
    assert run(source, tmp_path / "out", "--split=train", "--max-tokens=1000") == 0
    assert "fewer tokens than --max-tokens=1000" in capsys.readouterr().out


def test_a_wrong_tokenizer_can_be_mended_before_anything_is_finished(
    source, tmp_path, capsys, bpe_file
):
    assert run(source, tmp_path / "out", "--field=body", "--split=train", tokenizer=bpe_file) == 2
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(bpe_file.read_text()), "truncation": None}))
    assert run(source, tmp_path / "out", "--split=train", tokenizer=other) == 0
    assert (tmp_path / "out/tokenizer.json").read_bytes() == other.read_bytes()
    capsys.readouterr()
    assert run(source, tmp_path / "out", "--split=train", tokenizer=bpe_file) == 2
    assert "was prepared with another tokenizer" in error_of(capsys)


def test_fail_does_not_take_over_what_skip_left_out(tmp_path, capsys):
    write_documents(tmp_path / "a.jsonl", ["one", "", "two"])
    assert run(tmp_path / "a.jsonl", tmp_path / "out") == 0
    assert run(tmp_path / "a.jsonl", tmp_path / "out") == 0
    capsys.readouterr()
    assert run(tmp_path / "a.jsonl", tmp_path / "out", "--on-damage=fail") == 2
    assert "left out damaged records (1 empty)" in error_of(capsys)


def test_fail_does_not_take_over_finished_jobs_with_damage(tmp_path, capsys, monkeypatch):
    write_documents(tmp_path / "in/a.jsonl", ["one", ""])
    write_documents(tmp_path / "in/b.jsonl", ["two"])
    monkeypatch.setattr(prepare, "JOB_BYTES", 1)
    submit, jobs = prepare.Workers.submit, []

    def failing(self, number, *rest):
        jobs.append(number)
        if number:
            jobs[0].result()
            raise KeyboardInterrupt
        jobs[:] = [submit(self, number, *rest)]
        return jobs[0]

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Workers, "submit", failing)
        assert run(tmp_path / "in", tmp_path / "out", "--split=train") == 130
    capsys.readouterr()
    assert run(tmp_path / "in", tmp_path / "out", "--split=train", "--on-damage=fail") == 2
    assert "left out damaged records (1 empty)" in error_of(capsys)
    assert run(tmp_path / "in", tmp_path / "out", "--split=train") == 0


NOT_THERE = ["gtp2.json", "./gpt2", "/no/such/tokenizer.json", "a/b/c", "tok/tokenizer.json", "a b"]


@pytest.mark.parametrize("name", ["./data", "data/train.jsonl", "data/train.jsonl.zst"])
def test_the_path_of_a_source_is_not_looked_for_on_the_hub(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(hub, "_library", None)
    assert run(name, tmp_path / "out") == 2
    assert f"--source {name!r} is no file, no folder and no data set" in error_of(capsys)


@pytest.mark.parametrize("name", NOT_THERE)
def test_the_path_of_a_tokenizer_is_not_looked_for_on_the_hub(
    source, tmp_path, capsys, monkeypatch, name
):
    monkeypatch.setattr(hub, "_library", None)
    assert run(source, tmp_path / "out", "--split=train", tokenizer=name) == 2
    assert f"--tokenizer {name!r} does not exist; give 'byte'" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there_is_asked_once(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        hub._library(), "hf_hub_download", lambda *_, **__: pytest.fail("it would try for 24 s")
    )
    assert run(source, tmp_path / "out", "--split=train", tokenizer="gtp2") == 2
    assert "can't be had from http://127.0.0.1:9" in error_of(capsys)


MISTAKES = {
    "--holdout-every=1": "--holdout-every is 1; it must be at least 2",
    "--holdout-every=0": "--holdout-every is 0; it must be at least 2",
    "--holdout-every=9": "every 9th of 4 files is one; lower --holdout-every",
    "--max-tokens=0": "--max-tokens is 0; it must be at least 1",
    "--workers=0": "--workers is 0; it must be at least 1",
    "--on-damage=no": "--on-damage is 'no'",
    "--keep-downloads=maybe": "--keep-downloads is 'maybe'",
    "--join=maybe": "--join is 'maybe'",
    "--end-of-text=x": "--end-of-text is for tokenizer files",
    "--output=/proc/nope/out": "/proc/nope",
    "--output={source}/0.jsonl": "0.jsonl",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_is_said_before_any_work(source, tmp_path, capsys, no_work, flag):
    more = flag.format(source=source)
    split = () if "holdout" in flag else ("--split=train",)
    assert run(source, tmp_path / "out", *split, more) == 2
    assert MISTAKES[flag] in error_of(capsys)


def test_damaged_plans_and_folders_are_named(source, tmp_path, capsys):
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/plan.json").write_text("{")
    assert run(source, tmp_path / "out", "--split=train") == 2
    assert re.search("plan.json is damaged .*; remove '.*' to begin anew", error_of(capsys))


def test_a_reader_that_goes_away_leaves_no_trace(source, tmp_path, monkeypatch):
    """`inspect DIR | head`: whatever status the command gives, it does not fall over it."""
    assert run(source, tmp_path / "out", "--split=train") == 0
    monkeypatch.setattr(inspect.command_line, "run", lambda command: 0)  # it ended before the end
    assert inspect.main(["inspect", str(tmp_path / "out")]) == 0
