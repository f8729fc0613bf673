"""L = E + (A N^-alpha + B D^-beta)^gamma: known coefficients and the published ones come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis.scaling.synthetic import CHINCHILLA, WITH_GAMMA, runs
from xlstm_jax.analysis.scaling import (
    column,
    fit_parametric,
    parametric_intervals,
    published_runs,
)
from xlstm_jax.analysis.scaling.figures import parametric_figure
from xlstm_jax.analysis.scaling.parametric import NAMES, objective, quality
from xlstm_jax.errors import UserError

# A part of the full grid of starts, that tests take seconds; docs/scaling_laws.md has the full one.
SMALL = {
    "a": (5, 15),
    "b": (5, 15),
    "e": (0, 0.5),
    "alpha": (0.2, 0.5),
    "beta": (0.2, 0.5),
    "gamma": (0.5, 1),
}


def by_jax(coefficients, data, delta):
    a, b, e, alpha, beta, gamma = coefficients
    log_n, log_d, log_loss = data
    inner = jnp.logaddexp(a - alpha * log_n, b - beta * log_d)
    residual = jnp.abs(jnp.logaddexp(gamma * inner, e) - log_loss)
    small = jnp.minimum(residual, delta)
    return jnp.mean(small * (residual - small / 2))


@pytest.mark.parametrize("delta", [1e-3, 0.1, 10])
def test_the_gradient_is_exact(delta):
    data = tuple(np.log(column) for column in runs(WITH_GAMMA, noise=0.02))
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        reference = jax.jit(jax.value_and_grad(by_jax))
        for _ in range(5):
            at = np.array(WITH_GAMMA[:6]) * random.uniform(0.8, 1.2, 6)
            value, gradient = objective(at, data, delta)
            expected, slopes = reference(at, data, delta)
            assert value == pytest.approx(float(expected), rel=1e-12)
            np.testing.assert_allclose(gradient, np.asarray(slopes), rtol=1e-9, atol=1e-15)


def test_coefficients_without_noise_come_back():
    fit = fit_parametric(*runs(CHINCHILLA), outer_exponent=False, grid=SMALL)
    np.testing.assert_allclose(fit.coefficients(), CHINCHILLA.coefficients(), rtol=1e-3)
    assert fit.irreducible == pytest.approx(1.69, rel=1e-4)
    outer = fit_parametric(*runs(WITH_GAMMA), grid=SMALL)
    np.testing.assert_allclose(outer.coefficients(), WITH_GAMMA.coefficients(), rtol=1e-3)


def test_one_bad_run_does_not_bend_a_huber_fit():
    params, tokens, loss = runs(CHINCHILLA)
    loss[7] *= 1.3
    robust = fit_parametric(params, tokens, loss, outer_exponent=False, grid=SMALL)
    assert robust.alpha == pytest.approx(CHINCHILLA.alpha, rel=0.01)
    squares = fit_parametric(params, tokens, loss, outer_exponent=False, grid=SMALL, huber_delta=10)
    assert abs(squares.alpha / CHINCHILLA.alpha - 1) > 0.05


# What arXiv 2510.02228 prints for the same runs: Huber's delta and E, alpha, beta, gamma, RMSE.
PRINTED = {
    "xLSTM": (0.1, np.exp(0.1768), 0.7058, 0.6534, 0.2578, 0.0114),
    "Transformer": (0.1, np.exp(0.0901), 0.6448, 0.6259, 0.2532, 0.0098),
}


@pytest.mark.parametrize("family", PRINTED)
def test_the_published_fit_comes_out_of_the_published_losses(family):
    delta, *expected, rmse = PRINTED[family]
    runs = published_runs()[family]
    data = [column(runs, name) for name in ("params", "tokens", "loss")]
    fit = fit_parametric(*data, huber_delta=delta, grid=SMALL)
    found = [fit.irreducible, fit.alpha, fit.beta, fit.gamma]
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert quality(fit, *data).rmse < rmse + 5e-5  # theirs has three digits


def test_intervals_hold_the_coefficients():
    data = runs(CHINCHILLA, noise=0.005)
    fit = fit_parametric(*data, outer_exponent=False, grid=SMALL)
    found = parametric_intervals(fit, *data, outer_exponent=False, draws=40)
    assert list(found) == [*NAMES[:5], "E"]
    truth = dict(zip(NAMES, CHINCHILLA[:5], strict=False)) | {"E": 1.69}
    for name, interval in found.items():
        assert interval.low < truth[name] < interval.high, name
    again = parametric_intervals(fit, *data, outer_exponent=False, draws=40)
    assert again == found  # fixed seeds


def test_what_can_not_be_fitted_is_refused():
    params, tokens, loss = runs(CHINCHILLA)
    with pytest.raises(UserError, match="5 runs can't determine 6"):
        fit_parametric(params[:5], tokens[:5], loss[:5])
    with pytest.raises(UserError, match="above 0"):
        fit_parametric(params, tokens, -loss)


def test_the_figure_shows_runs_curves_and_residuals(tmp_path):
    data = runs(CHINCHILLA, noise=0.005)
    figure = parametric_figure(CHINCHILLA, *data, "synthetic")
    left, right = figure.axes
    assert len(left.get_lines()) == 12 and "E = 1.690" in left.get_title()
    residuals = np.concatenate([line.get_ydata() for line in right.get_lines()])
    assert 0.3 < np.std(residuals) < 0.7  # percent
    figure.savefig(tmp_path / "figure.png")
