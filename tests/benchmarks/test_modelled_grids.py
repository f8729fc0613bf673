"""Device hours of the experiments with small models."""

import types

import pytest

from benchmarks import modelled_grids
from benchmarks.modelled_rows import ROOT
from xlstm_jax.analysis.paper.catalogue import GRIDS
from xlstm_jax.analysis.paper.results import read
from xlstm_jax.analysis.paper.small import hours_of_all
from xlstm_jax.experiments.grid import runs_of
from xlstm_jax.experiments.running import config_of


def test_a_row_has_the_hours_of_all_runs_of_the_model(monkeypatch):
    model = types.SimpleNamespace(milliseconds=36.0)
    report = types.SimpleNamespace(model=model)
    monkeypatch.setattr(modelled_grids, "compile_step", lambda config, topology: report)
    row = modelled_grids.row_of("nns.py:lstm")
    grid = modelled_grids.grid_of("nns.py")  # one cell, so that every step takes as long
    runs = [run for run in runs_of(grid) if run.model == "lstm"]
    steps = sum(config_of(grid, str(ROOT / "configs/nns.py"), run).train.steps for run in runs)
    assert len(runs) == 20
    assert row["hours"] == pytest.approx(steps * 0.036 / 3600, abs=0.01)
    assert (row["cell"], row["dim"], row["how"]) == ("search", 128, "modelled")


def test_runs_with_more_tokens_take_longer():
    """Of formal languages all have as many; of recall a longer text has more."""
    path, grid = str(ROOT / "configs/mqar.py"), modelled_grids.grid_of("mqar.py")
    runs = [run for run in runs_of(grid) if run.model == "llama"]
    expected = 0
    for run in runs:
        config = config_of(grid, path, run)
        expected += config.train.steps * config.data.batch_size * config.data.context_length
    assert modelled_grids.tokens_in_all(grid, path, "llama") == expected


def test_the_committed_rows_are_of_every_model_of_every_grid():
    found = read(ROOT)
    assert all(hours_of_all(found, file) for file in GRIDS)
    assert {f"{row['grid']}:{row['model']}" for row in found.grids} == set(modelled_grids.names())
