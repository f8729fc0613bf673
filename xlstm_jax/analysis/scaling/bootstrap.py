"""Intervals of fitted numbers by refitting runs that are drawn with replacement."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xlstm_jax.errors import UserError

DRAWS = 200
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Where a number lies with the asked-for confidence."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def intervals(
    refit: Callable[[Int[np.ndarray, " R"]], Float[np.ndarray, " P"]],
    groups: list[Int[np.ndarray, " G"]],
    *,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Interval]:
    """Percentile intervals of the P numbers that `refit` returns.

    Args:
        refit: from the numbers of the drawn runs (some several times; NaN: no fit) to the fitted
            numbers. It should start from the fit to all runs, which is near and makes it fast.
        groups: numbers of runs that are drawn among themselves, so that each draw has as many of
            each group as there are: all runs in one group, or a group for each budget.

    Raises:
        UserError: nothing to draw from.
    """
    if draws < 2 or not all(len(group) for group in groups):
        raise UserError("a bootstrap needs runs in every group, and two draws or more")
    random = np.random.default_rng(seed)
    fitted = []
    for _ in range(draws):
        drawn = [random.choice(group, size=len(group)) for group in groups]
        fitted.append(refit(np.concatenate(drawn)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(np.asarray(fitted, float), [tail, 100 - tail], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
