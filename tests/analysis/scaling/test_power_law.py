"""Lines in log-log axes: known laws come back, intervals hold them, the paper's own numbers."""

import warnings

import numpy as np
import pytest

from tests.analysis.scaling.synthetic import power_law_runs
from xlstm_jax.analysis.paper.values import SLIMPAJAMA
from xlstm_jax.analysis.scaling import fit_power_law, over_training, power_law_intervals
from xlstm_jax.analysis.scaling.figures import power_law_figure
from xlstm_jax.analysis.scaling.power_law import quality
from xlstm_jax.analysis.scaling.table import column, published_runs
from xlstm_jax.errors import UserError


def test_a_line_without_noise_comes_back():
    law = fit_power_law(*power_law_runs(noise=0))
    assert law.exponent == pytest.approx(-0.23, rel=1e-9)
    assert law.coefficient == pytest.approx(50, rel=1e-8)
    assert law(1e9) == pytest.approx(50 * 1e9**-0.23)
    assert law.inverse(law(3e9)) == pytest.approx(3e9)


def test_its_intervals_hold_it():
    x, y = power_law_runs()
    found = power_law_intervals(x, y, draws=100)
    assert -0.23 in found.exponent and 50 in found.coefficient
    assert found.exponent.high - found.exponent.low < 0.02
    assert found != power_law_intervals(x, y, draws=100, seed=1)


def test_intervals_of_three_runs_are_wide_and_of_two_there_are_none():
    few = power_law_intervals(*power_law_runs(count=3)).exponent
    many = power_law_intervals(*power_law_runs(count=12)).exponent
    assert few.high - few.low > 3 * (many.high - many.low)
    assert power_law_intervals(*power_law_runs(count=2)) is None


def test_quality_is_in_logarithms():
    x, y = power_law_runs(noise=0.01, count=400)
    found = quality([(x, y, fit_power_law(x, y))])
    assert found.rmse == pytest.approx(0.01, rel=0.1) and 0.99 < found.r2 < 1
    assert found.mae < found.rmse < abs(found.largest) and found.runs == 400
    assert str(found).startswith("R2 0.99")


def test_the_papers_table_3_has_the_known_exponents():
    """Perplexity against parameters (figure 8): the exponents that four sizes give."""
    # table 3's parameters in millions, embeddings and head included
    params = {
        "RWKV-4": (169.4, 430.5, 891, 1515.2),
        "Llama": (162.2, 406.6, 834.1, 1420.4),
        "Mamba": (167.8, 423.1, 870.5, 1475.3),
        "xLSTM[1:0]": (163.8, 409.3, 840.4, 1422.6),
        "xLSTM[7:1]": (163.7, 408.4, 839.7, 1420.1),
    }
    expected = {
        "RWKV-4": -0.245,
        "Llama": -0.238,
        "Mamba": -0.227,
        "xLSTM[1:0]": -0.229,
        "xLSTM[7:1]": -0.223,
    }
    for model, exponent in expected.items():
        perplexities = [SLIMPAJAMA[size][model] for size in ("125M", "350M", "760M", "1.3B")]
        law = fit_power_law(np.array(params[model]) * 1e6, perplexities)
        assert law.exponent == pytest.approx(exponent, abs=0.002), model


def test_over_training_compares_equal_ratios():
    sizes = np.array([1e8, 1e9, 1e10])
    params, ratios = (column.ravel() for column in np.meshgrid(sizes, [20, 200]))
    tokens = params * ratios * [1, 1.02, 0.98, 1.01, 1, 0.99]  # as runs are: nearly
    flops = 6 * params * tokens
    loss = np.where(ratios == 20, 30 * flops**-0.05, 28 * flops**-0.04)
    laws = over_training(params, tokens, flops, loss, [20, 200])
    assert [law.exponent for law in laws.values()] == pytest.approx([-0.05, -0.04], rel=1e-6)
    with pytest.raises(UserError, match="fewer than two model sizes have 50 tokens"):
        over_training(params, tokens, flops, loss, [50])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [2.0], "two runs at least"),
        ([1.0, 1.0], [2.0, 3.0], "two different places"),
        ([1.0, 2.0], [2.0, 0.0], "numbers above 0"),
        ([1.0, float("nan")], [2.0, 1.0], "numbers above 0"),
    ],
)
def test_what_has_no_line_is_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        fit_power_law(x, y)


def test_the_figure_has_lines_and_residuals(tmp_path):
    x, y = power_law_runs()
    lines = {"one": (x, y, fit_power_law(x, y)), "two": (x, 2 * y, fit_power_law(x, 2 * y))}
    figure = power_law_figure(lines, "parameters", "perplexity")
    left, right = figure.axes
    assert len(left.get_lines()) == 4 and len(right.get_lines()) == 3
    residuals = right.get_lines()[0].get_ydata()
    np.testing.assert_allclose(residuals, 100 * (y / fit_power_law(x, y)(x) - 1))
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("family", "printed"),
    [
        ("xLSTM", {44: -0.0457, 110: -0.0456, 220: -0.0467, 550: -0.0473, 1100: -0.0474}),
        ("Transformer", {110: -0.0473, 220: -0.0475, 550: -0.0488, 1100: -0.0528}),
    ],
)
def test_over_training_slopes_of_the_published_runs(family, printed):
    """Those that the repository of arXiv 2510.02228 prints, where its groups are these; at 22 and
    the Transformer's 44 it takes in runs further from the ratio.
    """
    runs = published_runs()[family]
    columns = [column(runs, name) for name in ("params", "tokens", "flops", "loss")]
    found = over_training(*columns, list(printed))
    assert {ratio: round(law.exponent, 4) for ratio, law in found.items()} == printed


def test_a_coefficient_beyond_all_numbers_is_infinite_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = fit_power_law(np.array([1e12, 1.01e12]), np.array([1e6, 1.0]))
    assert law.coefficient == np.inf
