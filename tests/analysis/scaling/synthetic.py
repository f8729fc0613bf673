"""Runs whose laws are known."""

import numpy as np

from xlstm_jax.analysis.scaling.parametric import ParametricFit

SIZES = np.array([1.6e8, 4e8, 8e8, 1.4e9, 2.7e9, 7e9])
RATIOS = np.array([10, 22, 44, 110, 220, 550, 1100])  # tokens per parameter
# Of the size that Hoffmann et al. print: A = 406.4, B = 410.7, E = 1.69.
CHINCHILLA = ParametricFit(np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28, 1.0, 0.0)
# Of the size that arXiv 2510.02228 prints for xLSTM.
WITH_GAMMA = ParametricFit(15.46, 16.53, 0.18, 0.71, 0.65, 0.26, 0.0)


def runs(law: ParametricFit, noise: float = 0.0, seed: int = 0):
    """(parameters, tokens, loss) of every size at every ratio; `noise` is relative."""
    params, ratios = (column.ravel() for column in np.meshgrid(SIZES, RATIOS))
    tokens = params * ratios
    random = np.random.default_rng(seed)
    loss = law.loss(params, tokens) * np.exp(noise * random.normal(size=len(params)))
    return params, tokens, loss


def power_law_runs(seed: int = 0, noise: float = 0.01, count: int = 12):
    """(x, y) of y = 50 x^-0.23."""
    random = np.random.default_rng(seed)
    x = np.geomspace(1e8, 1e10, count)
    return x, 50 * x**-0.23 * np.exp(noise * random.normal(size=count))


OPTIMUM = (0.012, 0.547)  # N* = 0.012 C^0.547


def isoflop_runs(seed: int = 0, noise: float = 0.0, per_budget: int = 9):
    """(budget, parameters, loss): parabolas in log10 N around the optima of a power law."""
    random = np.random.default_rng(seed)
    columns = []
    for budget in (6e18, 1e19, 3e19, 1e20, 6e20):
        best = OPTIMUM[0] * budget ** OPTIMUM[1]
        params = best * np.geomspace(0.3, 4, per_budget)
        loss = 3 - 0.1 * np.log10(budget / 6e18) + 0.4 * np.log10(params / best) ** 2
        loss += noise * random.normal(size=per_budget)
        columns.append((np.full(per_budget, budget), params, loss))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))
