"""Straight lines in log-log axes: the loss or perplexity against parameters or compute, and how it
falls when models are trained on ever more tokens per parameter than is optimal.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

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
) -> PowerLawIntervals | None:
    """Bootstrap intervals, None for two runs, whose line leaves nothing over; `options` are those
    of `bootstrap.intervals`.

    What the line leaves over is drawn, not runs: of few runs many draws would have hardly a line.
    It is too small by the two degrees of freedom that the line takes, and its size is itself known
    from R - 2 of them only; without both, intervals of six runs hold the truth 86 times of 100.
    """
    fit_power_law(x, y)  # refuses what can't be fitted
    log_x, log_y = _logarithms(x, y)
    if (free := len(log_x) - 2) == 0:
        return None
    line = np.polyfit(log_x, log_y, 1)
    fitted = np.polyval(line, log_x)
    residuals = (log_y - fitted) * (len(log_x) / free) ** 0.5

    def refit(drawn: np.ndarray) -> np.ndarray:
        return np.polyfit(log_x, fitted + residuals[drawn], 1)

    found = intervals(refit, [np.arange(len(log_x))], **options)
    wider = special.stdtrit(free, 0.975) / special.ndtri(0.975)
    exponent, logarithm = (
        Interval(*(value + wider * (end - value) for end in interval))
        for value, interval in zip(line, found, strict=True)
    )
    with np.errstate(over="ignore"):  # a line that is hardly known may mean any coefficient
        coefficient = Interval(*(float(np.exp(end)) for end in logarithm))
    return PowerLawIntervals(coefficient, Interval(*map(float, exponent)))


def quality(lines: Iterable[tuple[np.ndarray, np.ndarray, PowerLaw]]) -> Quality:
    """How well laws describe measurements, each (x, y) its own, in logarithms: RMSE 0.01 is one
    percent of y.
    """
    predicted, measured = zip(*((law(x), np.asarray(y, float)) for x, y, law in lines), strict=True)
    return quality_of(np.log(np.concatenate(predicted)), np.log(np.concatenate(measured)))


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
