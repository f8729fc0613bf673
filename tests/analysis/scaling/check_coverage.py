"""How often 95 % intervals hold the truth, in 100 synthetic tables: at least 88 times, every
coefficient. Minutes, so not among the tests: `make scaling-check`.
"""

import numpy as np
import pytest

from tests.analysis.scaling.synthetic import (
    CHINCHILLA,
    OPTIMUM,
    WITH_GAMMA,
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


@pytest.mark.parametrize("runs", [3, 6, 12])  # over-training lines have few
def test_power_laws(runs):
    held = np.zeros(2, int)
    for seed in range(TABLES):
        found = power_law_intervals(*power_law_runs(seed, count=runs), seed=seed)
        held += [50 in found.coefficient, -0.23 in found.exponent]
    print(f"power law of {runs} runs: coefficient, exponent held", held)
    assert held.min() >= LEAST


@pytest.mark.parametrize("noise", [0.001, 0.005])
def test_isoflop_optima(noise):
    held = np.zeros(2, int)
    for seed in range(TABLES):
        found = isoflop_intervals(*isoflop_runs(seed, noise=noise), seed=seed)
        held += [OPTIMUM[0] in found.coefficient, OPTIMUM[1] in found.exponent]
    print(f"isoFLOP, noise {noise}: coefficient, exponent held", held)
    assert held.min() >= LEAST


@pytest.mark.parametrize("law", [CHINCHILLA, WITH_GAMMA], ids=["plain", "gamma"])
def test_parametric_coefficients(law):
    outer = law is WITH_GAMMA
    truth = dict(zip(NAMES, law[:6], strict=True)) | {"E": law.irreducible}
    if not outer:
        del truth["gamma"]
    held = dict.fromkeys(truth, 0)
    for seed in range(TABLES):
        data = runs(law, noise=0.003, seed=seed)
        fit = fit_from(law, *data, outer_exponent=outer)
        found = parametric_intervals(fit, *data, outer_exponent=outer, seed=seed)
        for name, value in truth.items():
            held[name] += value in found[name]
    print("parametric form: held", held)
    assert min(held.values()) >= LEAST
