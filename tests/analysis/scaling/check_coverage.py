"""How often 95 % intervals hold the truth, in 100 synthetic tables: at least 88 times, every
coefficient. Minutes, so not among the tests: `make scaling-check`.
"""

import numpy as np
import pytest

from tests.analysis.scaling.synthetic import (
    CHINCHILLA,
    OPTIMUM,
    isoflop_runs,
    power_law_runs,
    runs,
)
from xlstm_jax.analysis.scaling import (
    isoflop_intervals,
    parametric_intervals,
    power_law_intervals,
)
from xlstm_jax.analysis.scaling.parametric import NAMES, fit_from

TABLES, LEAST = 100, 88


def test_power_laws():
    held = np.zeros(2, int)
    for seed in range(TABLES):
        found = power_law_intervals(*power_law_runs(seed), seed=seed)
        held += [50 in found.coefficient, -0.23 in found.exponent]
    print("power law: coefficient, exponent held", held)
    assert held.min() >= LEAST


@pytest.mark.parametrize("noise", [0.001, 0.005])
def test_isoflop_optima(noise):
    held = np.zeros(2, int)
    for seed in range(TABLES):
        found = isoflop_intervals(*isoflop_runs(seed, noise=noise), seed=seed)
        held += [OPTIMUM[0] in found.coefficient, OPTIMUM[1] in found.exponent]
    print(f"isoFLOP, noise {noise}: coefficient, exponent held", held)
    assert held.min() >= LEAST


def test_parametric_coefficients():
    truth = dict(zip(NAMES, CHINCHILLA[:5], strict=False)) | {"E": CHINCHILLA.irreducible}
    held = dict.fromkeys(truth, 0)
    for seed in range(TABLES):
        data = runs(CHINCHILLA, noise=0.003, seed=seed)
        fit = fit_from(CHINCHILLA, *data, outer_exponent=False)
        found = parametric_intervals(fit, *data, outer_exponent=False, seed=seed)
        for name, value in truth.items():
            held[name] += value in found[name]
    print("parametric form: held", held)
    assert min(held.values()) >= LEAST
