"""The comparison: rows of one size and one text, chosen on held-out data, in a table whose last
column is the paper's and below which a person's words stay.
"""

import json
import math

import pytest

from benchmarks import compare, comparison_report
from configs import comparison
from xlstm_jax import config_files
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import load
from xlstm_jax.errors import UserError
from xlstm_jax.experiments.grid import Run, runs_of
from xlstm_jax.models import build_model
from xlstm_jax.runs.params import language_model_params

EXPERIMENT = config_files.experiment(compare.FILE, compare.PRESET)


def row(name, perplexity, papers, **more):
    about = {"set": "validation", "text": {"train": 1}, "data": "text", "tokenizer": "byte"}
    numbers = {"perplexity": perplexity, "paper_perplexity": papers, "learning_rate": 0.006}
    numbers |= {"perplexities": {"0.002": 9.0, "0.006": perplexity}, "tokens": 1000}
    numbers |= {"parameters": 12_000, "without_embeddings": 10_000}
    speeds = {"training": 500.0, "decoding": 50.0, "curve": [[10, 3.0], [20, 2.0]]}
    machine = {"cpus": 2, "devices": "1 x cpu", "date": "2026-01-01", "jax": "0", "python": "3"}
    return {"row": name.lower(), "model": name, **about, **numbers, **speeds} | {
        "machine": machine, **more
    }  # fmt: skip


@pytest.mark.slow
def test_every_row_of_table_1_is_there_and_of_about_one_size():
    assert len(comparison.ROWS) == 14
    for name in comparison.ROWS:
        config = load(f"configs/comparison.py:{name}", {})
        params = language_model_params(build_model(config.model))
        inner = count_parameters(
            {key: leaf for key, leaf in params.items() if key not in compare.OF_EMBEDDINGS}
        )
        assert config.model.dim == 128 and 1.49e6 < inner < 1.72e6, (name, inner)


def test_all_rows_have_the_same_tokens_and_two_learning_rates():
    runs = runs_of(EXPERIMENT)
    for name in comparison.ROWS:
        assert len({run.learning_rate for run in runs if run.model == name}) == 2
    read = {
        (config.data, config.train.steps, config.eval)
        for config in (load(f"configs/comparison.py:{name}", {}) for name in comparison.ROWS)
    }
    assert len(read) == 1


def test_rows_are_names_and_groups_each_once():
    assert compare.names_of("table1") == list(comparison.ROWS)
    assert compare.names_of("mamba,ladder,xlstm_7_1") == ["mamba", *comparison.GROUPS["ladder"]]
    known = {**comparison.ROWS, **comparison.ABLATIONS}
    assert all(name in known for group in comparison.GROUPS.values() for name in group)


def test_the_rate_is_chosen_on_held_out_data_and_the_test_text_shown():
    def numbers(rate, held_out, test):
        run = Run("text", "llama", 128, rate, 0)._asdict()
        about = {**run, "parameters": 1, "steps": 1, "n": 1, "config": "0"}
        for name, value in (("validation", held_out), (compare.TEST, test)):
            for metric, number in (("perplexity", value), ("loss", math.log(value))):
                yield {**about, "set": name, "metric": metric, "value": number}

    rows = [*numbers(0.002, 5.0, 7.0), *numbers(0.006, 6.0, 4.0)]
    found = compare.best_of(EXPERIMENT, rows, compare.TEST)
    assert (found.learning_rate, found.mean) == (0.002, 7.0)
    assert compare.best_of(EXPERIMENT, rows, "validation").mean == 5.0


def test_the_papers_value_stands_apart_and_orders_are_counted():
    rows = [row("A", 5.0, 14.0), row("B", 6.0, 15.0), row("C", 4.0, 16.0), row("D", None, None)]
    text = comparison_report.markdown(rows, {"curves": "c.png", "speed": "s.png"})
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("| model"))
    assert head.split("|")[-2].strip() == "*the paper's, 400M parameters, SlimPajama*"
    assert "| A | 5.000 | 12,000 | 10,000 | 0.006 (0.002: 9.000) | 500 | 50 | *14.00* |" in lines
    assert any(line.startswith("| D | diverged |") for line in lines)
    # the paper: A < B < C; here C < A < B
    assert (
        "Of 3 pairs of models 1 stand in the paper's order: A 1 of 2, B 1 of 2, C 0 of 2." in text
    )


def test_what_a_person_wrote_stays(tmp_path):
    output, jsonl = tmp_path / "comparison.md", tmp_path / "rows.jsonl"
    comparison_report.write([row("A", 5.0, 14.0)], output, jsonl)
    output.write_text(output.read_text().replace(comparison_report.TO_BE_WRITTEN, "It holds."))
    comparison_report.write([row("A", 5.0, 14.0), row("B", math.nan, 15.0)], output, jsonl)
    assert "It holds." in output.read_text() and "| B |" in output.read_text()
    assert json.loads(jsonl.read_text().splitlines()[1])["perplexity"] is None
    for name in ("comparison_curves.png", "comparison_speed.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_rows_of_another_text_are_refused(tmp_path):
    for name, text in (("llama", 1), ("mamba", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / compare.ROW).write_text(json.dumps(row(name, 5.0, 14.0, text=text)))
    with pytest.raises(UserError, match="rows that can't be compared: text of llama is 1"):
        compare.finished(EXPERIMENT, tmp_path)


@pytest.mark.slow
def test_a_row_is_trained_and_stays_done(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one and two are three, three and four are seven. " * 40)
    table, jsonl = tmp_path / "comparison.md", tmp_path / "rows.jsonl"
    overrides = {
        "data.path": text, "data.validation_path": text, "data.validation_sets": f"test={text}",
        "data.context_length": 16, "train.steps": 3, "optimizer.warmup_steps": 1, "log.every": 1,
        "model.num_blocks": 1, "mesh.data": 1,
    }  # fmt: skip
    arguments = [f"--workdir={tmp_path / 'runs'}", f"--table={table}", f"--jsonl={jsonl}"]
    arguments += [f"--config.{key}={value}" for key, value in overrides.items()]
    for _ in range(2):
        status = compare.main(["compare", "--rows=llama", *arguments])
        assert status == 0, capsys.readouterr()
    assert "2 runs, 2 of them done" in capsys.readouterr().out
    (before,) = map(json.loads, jsonl.read_text().splitlines())
    assert compare.main(["compare", "--rows=llama", "--speeds=again", *arguments]) == 0
    assert "run 1 of" not in capsys.readouterr().out
    (found,) = map(json.loads, jsonl.read_text().splitlines())
    assert found["set"] == compare.TEST and found["tokens"] == 3 * 8 * 16
    assert 1 < found["perplexity"] < 1000 and len(found["perplexities"]) == 2
    assert found["training"] != before["training"] and found["decoding"] != before["decoding"]
    assert found["training"] > 0 and found["decoding"] > 0 and len(found["curve"]) == 3
    assert found["parameters"] > found["without_embeddings"] > 100_000
    assert "| Llama |" in table.read_text() and str(tmp_path) not in table.read_text()
    empty = [f"--workdir={tmp_path / 'empty'}", *arguments[1:]]
    assert compare.main(["compare", "--rows=llama", "--speeds=again", *empty]) == 2
    assert "finds no row that is done" in capsys.readouterr().err
