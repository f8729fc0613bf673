"""Runs from CSV, JSON lines and our own folders."""

import json

import pytest

from xlstm_jax.analysis.scaling import Run, by_model, column, published_runs, read_runs
from xlstm_jax.analysis.scaling.counts import counts_of
from xlstm_jax.analysis.scaling.reading import read
from xlstm_jax.config import load
from xlstm_jax.errors import UserError

ROWS = [
    {"params": 1e6, "tokens": 2e7, "loss": 3.5, "model": "a", "flops": 1.2e14},
    {"params": 2e6, "tokens": 4e7, "loss": 3.25, "model": "b", "flops": 4.8e14},
]


def test_csv_and_json_lines_give_the_same(tmp_path):
    lines, table = tmp_path / "runs.jsonl", tmp_path / "runs.csv"
    lines.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    header = ",".join(ROWS[0])
    body = "\n".join(",".join(map(str, row.values())) for row in ROWS)
    table.write_text(f"\ufeff{header}\n{body}\n")  # as spreadsheets write it
    for path in (lines, table):
        runs = read_runs(str(path))
        assert [run[:4] for run in runs] == [(1e6, 2e7, 3.5, "a"), (2e6, 4e7, 3.25, "b")]
        assert column(runs, "flops").tolist() == [1.2e14, 4.8e14]
        assert list(by_model(runs)) == ["a", "b"] and runs[0].budget is None


def test_columns_may_have_other_names(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("N,D,val_loss,family\n1e6,2e7,3.5,x\n")
    names = {"params": "N", "tokens": "D", "loss": "val_loss", "model": "family"}
    assert read_runs(str(path), names)[0][:4] == (1e6, 2e7, 3.5, "x")
    with pytest.raises(UserError, match="no 'params'; it has N, D, val_loss, family"):
        read_runs(str(path))
    with pytest.raises(UserError, match="there is no column 'size'"):
        read_runs(str(path), {"size": "N"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"params": 1, "tokens": 2}', "line 1 has no 'loss'"),
        ('{"params": 1, "tokens": 2, "loss": "nan"}', "loss is 'nan'; it must be a number above 0"),
        ('{"params": 1, "tokens": -2, "loss": 3}', "tokens is -2"),
        ("{", "line 1 is no JSON"),
        ("3", "line 1 is no record"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, text, message):
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_runs(str(path))


def test_a_missing_file_or_column_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_runs(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="the run here has no flops"):
        column([Run(1, 2, 3, source="here")], "flops")


def own_run(folder, events, steps=20):
    config = load("configs/scaling.py:cpu-llama-32x1", {"train.steps": steps, **SHORT})
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "spl')
    return config


SHORT = {"optimizer.warmup_steps": 2}
EVENTS = [
    {"step": 10, "split": "validation", "loss": 3.0},
    {"step": 20, "split": "train", "loss": 1.0},
    {"step": 20, "split": "validation", "loss": 2.5},
    {"step": 20, "split": "validation/more", "loss": 9.0},
]


def test_our_own_folders_give_size_flops_and_the_held_out_loss_after_the_last_step(tmp_path):
    config = own_run(tmp_path / "done", EVENTS)
    [run] = read_runs(str(tmp_path / "done"), counting="model")
    counts = counts_of(config, ())
    assert (run.params, run.params_without_embedding) == counts[:2]
    assert run.params - run.params_without_embedding == 2 * 320 * 32
    assert (run.tokens, run.loss, run.context) == (20 * 8 * 256, 2.5, 256)
    assert run.flops == run.tokens * counts.flops_per_token
    # a run that is under way has its last loss at a learning rate that is still high
    own_run(tmp_path / "under_way", EVENTS[:1])
    found = read(str(tmp_path))
    assert [run.loss for run in found.runs] == [2.5]
    assert found.unfinished == [str(tmp_path / "under_way")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no runs"):
        read(str(tmp_path / "empty"))


def test_the_published_runs_are_all_there():
    families = published_runs()
    assert {name: len(runs) for name, runs in families.items()} == {"xLSTM": 35, "Transformer": 31}
    assert families["xLSTM"][0][:3] == (164e6, 3.67e9, 3.2781)
    assert families["Transformer"][-1][:3] == (6.86e9, 6.08e11, 2.1812)
