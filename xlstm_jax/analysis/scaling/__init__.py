"""Scaling laws: fits to tables of runs, with intervals and residuals."""

from xlstm_jax.analysis.scaling.isoflop import fit_isoflop, isoflop_intervals
from xlstm_jax.analysis.scaling.parametric import fit_parametric, parametric_intervals
from xlstm_jax.analysis.scaling.power_law import (
    fit_power_law,
    over_training,
    power_law_intervals,
)
from xlstm_jax.analysis.scaling.reading import read_runs
from xlstm_jax.analysis.scaling.table import Run, by_model, column, published_runs

__all__ = [
    "Run",
    "by_model",
    "column",
    "fit_isoflop",
    "fit_parametric",
    "fit_power_law",
    "isoflop_intervals",
    "over_training",
    "parametric_intervals",
    "power_law_intervals",
    "published_runs",
    "read_runs",
]
