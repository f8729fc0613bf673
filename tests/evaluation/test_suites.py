"""eval.py from the command line: results as JSON, Markdown and figures; mistakes are one line."""

import dataclasses
import gzip
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

import eval as command
from xlstm_jax.analysis.paper.values import (
    MODELS,
    PALOMA,
    PALOMA_SOURCES,
    SIZES,
    TASK_COLUMNS,
    TASKS,
)
from xlstm_jax.data.shards import MANIFEST, Manifest, ShardWriter
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.evaluation import opened, report, speed, suites
from xlstm_jax.evaluation.command import FLAGS
from xlstm_jax.evaluation.downstream import PAPER_TASKS, paper_average
from xlstm_jax.evaluation.options import NAMES, USED_BY, Options
from xlstm_jax.evaluation.speed import Timing
from xlstm_jax.evaluation.suites import SUITES

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
    curves = results["extrapolation"]["contexts"]
    assert [(curve["context"], curve["tokens"]) for curve in curves] == [(16, 288), (32, 288)]
    assert [timing["tokens"] for timing in results["generation"]["lengths"]] == [2, 4]
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "## perplexity" in markdown and "gzip -9, the same text" in markdown
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
        "JAX_NUM_CPU_DEVICES": "8",
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
    printed = capsys.readouterr().out
    assert "validation, step 0: loss" in printed
    path, *after = printed[printed.rindex(str(run_folder / "eval")) :].splitlines()
    assert path == str(run_folder / "eval" / "0" / "results.md")
    assert [line.partition("python")[2] or line for line in after] == [
        "next:",
        f" eval.py --workdir={run_folder} --suite=extrapolation",
        f" -m xlstm_jax.generation --checkpoint={run_folder} --prompt='def '",
    ]


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


def test_all_of_a_text_that_is_given_is_scored(run_folder, tmp_path, capsys):
    """Beside the run's own results, under its name, with the windows that it was scored in."""
    text = tmp_path / "text.txt"
    text.write_text("one text, of which nothing is held out " * 4)
    output = f"--output={tmp_path / 'out'}"
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    config = json.loads((run / "config.json").read_text())
    config["eval"]["max_tokens"] = 100  # of its own held-out text
    (run / "config.json").write_text(json.dumps(config))
    assert call(run, output) == 0
    capsys.readouterr()
    assert call(run, f"--data={text}", "--context_length=8", output) == 0
    printed = capsys.readouterr().out
    tokens = len(text.read_bytes()) + 1  # and the end of the text
    assert f"perplexity: all {tokens:,} tokens in windows of 8" in printed
    assert "text.txt, step 0: loss" in printed and f"over {tokens:,} tokens" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]
    assert list(results) == ["perplexity", "perplexity/text.txt"]
    assert results["perplexity"]["tokens"] == 100
    scored = results["perplexity/text.txt"]
    assert scored["tokens"] == tokens and scored["text_bytes"] == tokens - 1
    assert scored["context_length"] == 8
    size = 8 * len(gzip.compress(text.read_bytes(), 9)) / (tokens - 1)
    assert scored["gzip_bits_per_byte"] == pytest.approx(size)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_of_token_shards_the_only_split_is_meant(run_folder, tmp_path, split):
    folder = tmp_path / "tokens" / split
    folder.mkdir(parents=True)
    writer = ShardWriter(folder / "00000.bin", "uint16")
    writer.write(ByteTokenizer().encode_batch(["some text"], [True]))
    shard = writer.close()
    manifest = Manifest(split, "byte", "byte", 257, 256, "uint16", 10, 1, 9, (shard,))
    (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest)))
    data = f"--data={tmp_path / 'tokens'}"
    assert call(run_folder, data, f"--output={tmp_path / 'out'}") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]
    assert results[f"perplexity/tokens/{split}"]["tokens"] == 10


def test_perplexities_per_token_stand_beside_those_of_the_same_tokenizer_only(
    run_folder, tmp_path, monkeypatch
):
    def markdown(name):
        assert call(run_folder, "--max_tokens=100", f"--output={tmp_path / name}") == 0
        return (tmp_path / name / "results.md").read_text()

    bytes_model = markdown("bytes")
    assert "this model, validation" in bytes_model and "| paper:" not in bytes_model
    assert "another tokenizer" in bytes_model
    assert not opened.is_papers_tokenizer(ByteTokenizer())
    monkeypatch.setattr(opened, "is_papers_tokenizer", lambda tokenizer: True)
    assert "| paper: Llama 1.3B |" in markdown("gpt2")


def test_earlier_numbers_are_kept(run_folder, tmp_path):
    output = f"--output={tmp_path / 'out'}"
    for count in (100, 100, 50):
        assert call(run_folder, f"--max_tokens={count}", output) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["suites"]["perplexity"]["tokens"] == 50
    assert [(entry["suite"], entry["tokens"]) for entry in results["earlier"]] == [
        ("perplexity", 100)
    ]


def test_a_disk_that_is_full_for_a_while_costs_no_suite(run_folder, tmp_path, monkeypatch, capsys):
    write, failures = report.write, [OSError(28, "No space left on device")]

    def fail_once(*arguments):
        if failures:
            raise failures.pop()
        write(*arguments)

    monkeypatch.setattr(report, "write", fail_once)
    arguments = ["--suite=perplexity,extrapolation", "--contexts=16", "--max_tokens=100"]
    assert call(run_folder, *arguments, f"--output={tmp_path / 'out'}") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["suites"]
    assert list(results) == ["perplexity", "extrapolation"]
    assert "No space left" in capsys.readouterr().err
    failures += [OSError(28, "No space left on device")] * 2
    assert call(run_folder, "--max_tokens=100", f"--output={tmp_path / 'out'}") == 2
    assert "perplexity could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=speed"], "--suite has 'speed'"),
        (["--suite=perplexity,paloma"], "--paloma is missing"),
        (["--suite=perplexity,paloma", "--paloma={tmp}"], "has no files SOURCE/val"),
        (["--suite=perplexity,downstream"], "needs the lm-evaluation-harness"),
        (["--suite=extrapolation", "--contexts=1k"], "--contexts is '1k'"),
        (["--suite=perplexity,extrapolation", "--contexts=32,48"], "do not divide"),
        (["--suite=perplexity,extrapolation", "--contexts=16,65536"], "less than one window"),
        (["--split=test"], "there is no split 'test'; there are train, validation"),
        (["--data={tmp}/missing"], "missing' does not exist"),
        (["--data={file}", "--split=train"], "is text, all of which is scored"),
        (["--output={file}"], "--output"),
        (["--output={file}/below"], "is a file; give a folder"),
        (["--output={damaged}"], "results.json' is no file of results"),
        (["--output={others}"], "holds results of another checkpoint"),
        (["--max_tokens=0"], "--max_tokens is 0; it must be at least 1"),
        (["--checkpoint={tmp}"], "--workdir and --checkpoint are both given"),
        # what the chosen suites would not read
        (["--contexts=16"], "--contexts is of no use with --suite=perplexity"),
        (["--limit=3"], "--limit is of no use with --suite=perplexity"),
        (["--suite=extrapolation", "--context_length=3"], "--context_length is of no use"),
        (["--suite=generation", "--batch_size=3"], "--batch_size is of no use"),
        (["--suite=generation", "--split=train"], "--split is of no use"),
        (["--suite=extrapolation", "--lengths=3"], "--lengths is of no use"),
    ],
)
def test_mistakes_are_one_line_before_any_suite_runs(
    run_folder, tmp_path, monkeypatch, capsys, arguments, message
):
    for name in SUITES:
        monkeypatch.setitem(SUITES, name, None)  # none is called
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "file").write_text("text")
    for name, content in (("damaged", "{"), ("others", json.dumps({"suites": {"perplexity": {}}}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    places = {"tmp": tmp_path, **{name: tmp_path / name for name in ("file", "damaged", "others")}}
    assert call(run_folder, *(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "text"


def test_every_option_is_read_by_a_suite():
    assert set(USED_BY) == {field.name for field in dataclasses.fields(Options)} <= set(FLAGS)
    assert {suite for suites in USED_BY.values() for suite in suites} == set(NAMES) == set(SUITES)


def test_the_generation_suite_says_what_its_columns_are(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suites, "time_lengths", lambda *_: iter([Timing(1, 64, 0.5)]))
    timings = [Timing(1, 64, 0.25), Timing(4, 64, None)]
    monkeypatch.setattr(suites, "time_batches", lambda *_: iter(timings))
    assert call(run_folder, "--suite=generation", f"--output={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out.splitlines()
    heads = [number for number, line in enumerate(printed) if "seconds" in line.split()]
    assert [printed[number + 1].split() for number in heads] == [
        ["1", "64", "0.500", "128.0"],
        ["1", "64", "0.250", "256.0"],
    ]
    assert printed[heads[1] + 2].split() == ["4", "64", "out", "of", "memory"]
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| one text after a prompt of 16 tokens | 1 | 64 | 0.500 | 128.0 |" in table
    assert (tmp_path / "out" / "generation.png").is_file()


def test_the_end_of_memory_is_marked(monkeypatch):
    def runner(model, params, batch, space):
        def run(count):
            if batch > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        return run

    monkeypatch.setattr(speed, "_runner", runner)
    timings = list(speed.time_batches(None, None, (1, 2, 4, 8)))
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
    for size, sources in PALOMA.items():
        assert list(sources) == list(PALOMA_SOURCES) and list(TASKS[size]) == list(MODELS)
        assert all(len(row) == len(MODELS) for row in sources.values())
    assert set(SIZES.values()) == set(TASKS) == set(PALOMA)
