"""Speeds that are modelled: each model of the paper has its run, and a row replaces the one that
was modelled before.
"""

import json
import types

import pytest

from benchmarks import modelled_speeds
from xlstm_jax.analysis.paper.catalogue import LONG_RUNS, TRAINED
from xlstm_jax.analysis.paper.costs import cost_of

MEASURED = {
    "config": "llama.py:350m-15b",
    "device": "H100",
    "tokens_per_second": 7,
    "how": "measured",
}
OLD = {**MEASURED, "config": "llama.py:350m-300b", "tokens_per_second": 5, "how": "modelled"}


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """The rows after the command has run for Llama of 350M, from what they were before."""
    file = tmp_path / "speeds.jsonl"
    monkeypatch.setattr(modelled_speeds, "FILE", file)
    compiled = []

    def compile_step(config, topology):
        compiled.append((config.data.batch_size, config.model.remat, topology))
        model = types.SimpleNamespace(milliseconds=400.0)
        return types.SimpleNamespace(fits=True, model=model, kernels={"cudnn": 72})

    monkeypatch.setattr(modelled_speeds, "compile_step", compile_step)

    def run(before, *flags):
        file.write_text("".join(json.dumps(row) + "\n" for row in before))
        monkeypatch.setattr("sys.argv", ["speeds", "--only", "llama.*350m", *flags])
        modelled_speeds.main()
        return [json.loads(line) for line in file.read_text().splitlines()], compiled

    return run


def test_a_row_says_what_was_compiled_and_what_is_left_out_of_its_time(rows):
    (measured, found), compiled = rows([MEASURED])
    assert measured == MEASURED and compiled == [(16, "block", "h100:1x1x1")]
    assert found["config"] == "llama.py:350m-15b"
    assert found["tokens_per_second"] == 16 * 2048 / 0.4
    assert found["how"] == "modelled, cuDNN's attention left out"


def test_what_was_modelled_before_is_kept_or_made_again(rows):
    kept, compiled = rows([OLD, MEASURED])
    assert kept == [OLD, MEASURED] and not compiled
    (measured, found), _ = rows([OLD, MEASURED], "--again")
    assert measured == MEASURED and found["tokens_per_second"] > 7


def test_with_its_rows_every_run_of_the_paper_has_device_hours():
    speeds = [
        {"config": config, "device": "H100", "tokens_per_second": 1000, "how": "modelled"}
        for config in modelled_speeds.configurations()
    ]
    entries = [*sum(TRAINED.values(), ()), *sum(LONG_RUNS.values(), ())]
    assert all(cost_of(entry, speeds).how.startswith("modelled") for entry in entries)
