"""Optima per budget and their power law, on budgets whose optima are known."""

import numpy as np
import pytest

from tests.analysis.scaling.synthetic import OPTIMUM, isoflop_runs
from xlstm_jax.analysis.scaling import fit_isoflop, isoflop_intervals
from xlstm_jax.analysis.scaling.figures import isoflop_figure
from xlstm_jax.errors import UserError


def test_known_optima_come_back():
    fit = fit_isoflop(*isoflop_runs())
    for parabola in fit.parabolas:
        assert parabola.optimum == pytest.approx(OPTIMUM[0] * parabola.budget ** OPTIMUM[1])
        assert parabola.curvature == pytest.approx(0.4) and parabola.is_inside
        assert parabola(parabola.optimum) == pytest.approx(parabola.least)
    assert fit.parabolas[0].least == pytest.approx(3.0)
    assert fit.law.exponent == pytest.approx(OPTIMUM[1])
    assert fit.law.coefficient == pytest.approx(OPTIMUM[0], rel=1e-5)


def test_intervals_hold_the_exponent():
    """docs/scaling_laws.md counts how often; `make scaling-check`."""
    runs = isoflop_runs(noise=0.002)
    found = isoflop_intervals(*runs, draws=40)
    assert OPTIMUM[1] in found.exponent and OPTIMUM[0] in found.coefficient
    assert found.exponent.high - found.exponent.low < 0.05
    assert found == isoflop_intervals(*runs, draws=40)  # fixed seeds


def test_an_optimum_beyond_the_runs_is_told():
    budget, params, loss = isoflop_runs()
    small = params < OPTIMUM[0] * budget ** OPTIMUM[1] * 0.9
    fit = fit_isoflop(budget[small], params[small], loss[small])
    assert not any(parabola.is_inside for parabola in fit.parabolas)


def test_what_has_no_optimum_is_refused():
    budget, params, loss = isoflop_runs()
    first = budget == budget[0]
    with pytest.raises(UserError, match="two budgets at least; there is 1"):
        fit_isoflop(budget[first], params[first], loss[first])
    with pytest.raises(UserError, match="6e[+]18 FLOPs has no minimum"):
        fit_isoflop(budget, params, -loss)
    few = np.r_[0, 1, 9:45]
    with pytest.raises(UserError, match="has runs at 2 places"):
        fit_isoflop(budget[few], params[few], loss[few])


def test_the_figure_marks_the_optima(tmp_path):
    runs = isoflop_runs(noise=0.002)
    figure = isoflop_figure(fit_isoflop(*runs), *runs, "parameters")
    stars = [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "*"]
    assert len(stars) == 10
    figure.savefig(tmp_path / "figure.png")
