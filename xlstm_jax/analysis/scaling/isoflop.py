"""The best model size and token count for a budget of compute: per budget a parabola of the loss in
log10 of one of them, whose vertex is the optimum, and power laws of the optima in the budget.

As approach 2 of Hoffmann et al. 2022 and arXiv 2510.02228.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from xlstm_jax.analysis.scaling.bootstrap import intervals
from xlstm_jax.analysis.scaling.power_law import PowerLaw, PowerLawIntervals, fit_power_law
from xlstm_jax.analysis.scaling.quality import Quality, quality_of
from xlstm_jax.errors import UserError


class Parabola(NamedTuple):
    """The loss at one budget: curvature * (log10 x - log10 optimum)^2 + least.

    Attributes:
        budget: FLOPs.
        optimum: x (parameters or tokens) of the least loss.
        first, last: the least and greatest x that were measured.
    """

    budget: float
    optimum: float
    least: float
    curvature: float
    first: float
    last: float

    def __call__(self, x) -> Float[np.ndarray, "..."]:
        """The loss at x."""
        return self.curvature * (np.log10(x) - np.log10(self.optimum)) ** 2 + self.least

    @property
    def is_inside(self) -> bool:
        """Whether the optimum lies between measured runs; else it is extrapolated."""
        return self.first <= self.optimum <= self.last


class IsoFlopFit(NamedTuple):
    """Parabolas by budget, ascending, and the power law of their optima."""

    parabolas: tuple[Parabola, ...]
    law: PowerLaw


def fit_isoflop(
    budget: Float[np.ndarray, " R"], x: Float[np.ndarray, " R"], loss: Float[np.ndarray, " R"]
) -> IsoFlopFit:
    """Optima per budget and their power law.

    Args:
        budget: FLOPs that each run was planned for: equal numbers belong together. (What was
            counted after training differs from run to run.)
        x: parameters, or tokens.

    Raises:
        UserError: fewer than two budgets, fewer than three sizes at one, or a loss that has no
            minimum there.
    """
    budget, x, loss = (np.asarray(column, np.float64) for column in (budget, x, loss))
    budgets = np.unique(budget)
    if len(budgets) < 2:
        raise UserError(
            f"a power law of optima needs two budgets at least; there is {len(budgets)}"
        )
    parabolas = tuple(
        _parabola(flops, x[budget == flops], loss[budget == flops]) for flops in budgets
    )
    return IsoFlopFit(parabolas, fit_power_law(budgets, [p.optimum for p in parabolas]))


def quality(fit: IsoFlopFit, budget, x, loss) -> Quality:
    """How well the parabolas describe the losses, in nats."""
    of_budget = {parabola.budget: parabola for parabola in fit.parabolas}
    pairs = zip(np.asarray(budget, float), np.asarray(x, float), strict=True)
    predicted = np.array([of_budget[flops](place) for flops, place in pairs])
    return quality_of(predicted, np.asarray(loss, float))


def isoflop_intervals(
    budget: Float[np.ndarray, " R"],
    x: Float[np.ndarray, " R"],
    loss: Float[np.ndarray, " R"],
    **options,
) -> PowerLawIntervals:
    """Bootstrap intervals of the power law. `options` are those of `bootstrap.intervals`.

    Sizes are planned, and few at each budget: they stay, and what the parabolas leave over is drawn
    anew among the runs of a budget. (Drawing the runs themselves makes intervals 1.5 times as wide
    as they should be, since a parabola through what is left of nine runs is a loose one.)
    """
    columns = tuple(np.asarray(column, np.float64) for column in (budget, x, loss))
    parabolas = fit_isoflop(*columns).parabolas
    groups = [np.flatnonzero(columns[0] == parabola.budget) for parabola in parabolas]
    ordered = np.concatenate(groups)
    budget, x, loss = (column[ordered] for column in columns)
    fitted = np.concatenate(
        [parabola(columns[1][group]) for parabola, group in zip(parabolas, groups, strict=True)]
    )
    # a parabola takes three degrees of freedom of its runs: what it leaves over is too small by
    # this much; where there are three runs nothing is left over
    widened = np.concatenate(
        [np.full(len(group), (len(group) / max(1, len(group) - 3)) ** 0.5) for group in groups]
    )
    residuals = (loss - fitted) * widened

    def refit(drawn: np.ndarray) -> np.ndarray:
        try:
            return np.array(fit_isoflop(budget, x, fitted + residuals[drawn]).law)
        except UserError:  # no minimum at some budget
            return np.array([np.nan, np.nan])

    ends = np.cumsum([len(group) for group in groups])
    places = np.split(np.arange(len(ordered)), ends[:-1])
    return PowerLawIntervals(*intervals(refit, places, **options))


def _parabola(budget: float, x: np.ndarray, loss: np.ndarray) -> Parabola:
    if len(np.unique(x)) < 3:
        raise UserError(
            f"the budget of {budget:.3g} FLOPs has runs at {len(np.unique(x))} places; a parabola "
            f"needs three"
        )
    # around the middle, where powers of log10 x do not swallow each other's digits
    middle = np.mean(np.log10(x))
    curvature, slope, level = np.polyfit(np.log10(x) - middle, loss, 2)
    if curvature <= 0:
        raise UserError(
            f"the loss at {budget:.3g} FLOPs has no minimum: it bends downwards; add runs on both "
            f"sides of the best one"
        )
    place = -slope / (2 * curvature)
    return Parabola(
        float(budget),
        float(10 ** (middle + place)),
        float(level - curvature * place**2),
        float(curvature),
        float(x.min()),
        float(x.max()),
    )
