"""Straight lines in log-log axes: the loss or perplexity against parameters or compute, and how it
falls when models are trained on ever more tokens per parameter than is optimal.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from xlstm_jax.analysis.scaling.bootstrap import Interval, intervals
from xlstm_jax.analysis.scaling.quality import Quality, quality_of
from xlstm_jax.errors import UserError

TOLERANCE = 0.15  # of tokens per parameter


class PowerLaw(NamedTuple):
    """y = coefficient * x^exponent."""

    coefficient: float
    exponent: float

    def __call__(self, x) -> Float[np.ndarray, "..."]:
        """y at x."""
        return self.coefficient * np.asarray(x, float) ** self.exponent

    def inverse(self, y) -> Float[np.ndarray, "..."]:
        """x at y."""
        return (np.asarray(y, float) / self.coefficient) ** (1 / self.exponent)


class PowerLawIntervals(NamedTuple):
    """Bootstrap intervals."""

    coefficient: Interval
    exponent: Interval


def fit_power_law(x: Float[np.ndarray, " R"], y: Float[np.ndarray, " R"]) -> PowerLaw:
    """The line of least squares through (ln x, ln y).

    Raises:
        UserError: fewer than two different x, or values that are not positive.
    """
    log_x, log_y = _logarithms(x, y)
    if np.ptp(log_x) == 0:
        raise UserError("a power law needs two different places at least; all runs have the same")
    exponent, intercept = np.polyfit(log_x, log_y, 1)
    with np.errstate(over="ignore"):  # few runs drawn again may mean any coefficient, infinity too
        return PowerLaw(float(np.exp(intercept)), float(exponent))


def power_law_intervals(
    x: Float[np.ndarray, " R"], y: Float[np.ndarray, " R"], **options
) -> PowerLawIntervals:
    """Bootstrap intervals; `options` are those of `bootstrap.intervals`.

    Draws whose runs all lie in one place have no line and are left out.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    fit_power_law(x, y)  # refuses what can't be fitted

    def refit(drawn: np.ndarray) -> np.ndarray:
        if np.ptp(x[drawn]) == 0:
            return np.array([np.nan, np.nan])
        return np.array(fit_power_law(x[drawn], y[drawn]))

    return PowerLawIntervals(*intervals(refit, [np.arange(len(x))], **options))


def quality(law: PowerLaw, x, y) -> Quality:
    """How well a law describes measurements, in logarithms: RMSE 0.01 is one percent of y."""
    return quality_of(np.log(law(x)), np.log(np.asarray(y, float)))


def at_ratio(params, tokens, ratio: float, tolerance: float = TOLERANCE) -> np.ndarray:
    """Which runs have so many tokens per parameter, within the tolerance (relative to it)."""
    found = np.asarray(tokens, float) / np.asarray(params, float)
    return np.abs(found / ratio - 1) <= tolerance


def over_training(
    params: Float[np.ndarray, " R"],
    tokens: Float[np.ndarray, " R"],
    flops: Float[np.ndarray, " R"],
    loss: Float[np.ndarray, " R"],
    ratios: Sequence[float],
    tolerance: float = TOLERANCE,
) -> dict[float, PowerLaw]:
    """Loss against compute, among models trained on equally many tokens per parameter.

    Args:
        ratios: tokens per parameter; a run belongs to one that it is within `tolerance` of,
            relative to the ratio.

    Raises:
        UserError: fewer than two model sizes at a ratio.
    """
    found = np.asarray(tokens, float) / np.asarray(params, float)
    laws = {}
    for ratio in ratios:
        chosen = at_ratio(params, tokens, ratio, tolerance)
        if len(np.unique(np.asarray(params)[chosen])) < 2:
            there = ", ".join(f"{each:.0f}" for each in sorted(found))
            raise UserError(
                f"fewer than two model sizes have {ratio:g} tokens per parameter (within "
                f"{tolerance:.0%}); there are runs at {there}"
            )
        laws[ratio] = fit_power_law(np.asarray(flops)[chosen], np.asarray(loss)[chosen])
    return laws


def _logarithms(x, y) -> tuple[np.ndarray, np.ndarray]:
    columns = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
        raise UserError("a power law needs finite numbers above 0")
    if len(columns[0]) < 2:
        raise UserError(f"a power law needs two runs at least; there are {len(columns[0])}")
    return np.log(columns[0]), np.log(columns[1])
