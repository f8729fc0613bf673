"""From rows to numbers: the best learning rate by held-out data, and its runs' test results."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Row = Mapping[str, Any]  # what it has is said in `experiments.rows`

GUESS = "guess: "  # beginning of the name of the set of a predictor that has learned nothing
DIVERGED = "diverged"  # the set of the one row of a run that ended with no number
FINAL = "test"  # the set that is shown
# Student's t at 99.5 % by degrees of freedom: a 99 % interval of a mean of one more numbers
T_995 = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250)
Z_995 = 2.576  # of the normal distribution


class Question(Protocol):
    """What choosing must know of an experiment; `experiments.grid.Experiment` says what each is."""

    metric: str
    chosen_by: tuple[str, str]
    higher_is_better: bool
    spread: str
    curve: tuple[str, str, str] | None


class Result(NamedTuple):
    """What a model reached in a cell.

    Attributes:
        mean: over the seeds of the learning rate that held-out data chose; NaN where all diverged.
        spread: standard deviation over the seeds, or half a 99 % interval of their mean; of one
            accuracy the interval that its number of answers gives; None where there is none.
        seeds, learning_rate: of the runs behind it.
        rates: how many learning rates there was a choice of.
        curve: means over the seeds of the experiment's curve, by the end of the number's name.
    """

    mean: float
    spread: float | None
    seeds: int
    learning_rate: float
    rates: int
    parameters: int | None
    steps: tuple[int, ...]
    curve: Mapping[str, float]


Key = tuple[str, str, int]  # cell, model, dim


def results_of(experiment: Question, rows: Iterable[Row]) -> dict[Key, Result]:
    """The result of each cell, model and dim of which there are rows."""
    runs: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row["cell"], row["model"], row["dim"], row["learning_rate"], row["seed"]].append(row)
    by_key: dict[Key, dict[float, list[list[Row]]]] = defaultdict(lambda: defaultdict(list))
    for (cell, model, dim, rate, _), found in runs.items():
        by_key[cell, model, dim][rate].append(found)
    return {key: _result(experiment, rates) for key, rates in by_key.items()}


def guesses_of(experiment: Question, rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """What predictors reach that have learned nothing: by their name, by cell."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["set"].startswith(GUESS) and row["metric"] == experiment.metric:
            found[row["set"].removeprefix(GUESS)][row["cell"]] = row["value"]
    return dict(found)


def mean_ranks(
    values: Mapping[str, Mapping[str, float]],
    cells: Sequence[str],
    *,
    higher_is_better: bool = True,
) -> dict[str, float]:
    """The mean over the cells of each model's rank, 1 being the best; equal values share the better
    rank. A value that is missing or no number comes behind all others.

    Args:
        values: by model and cell.
    """
    sign, worst = (1 if higher_is_better else -1), -math.inf
    ranks: dict[str, list[int]] = {model: [] for model in values}
    for cell in cells:
        merits = {}
        for model, own in values.items():
            value = own.get(cell, math.nan)
            merits[model] = worst if math.isnan(value) else sign * value
        for model, merit in merits.items():
            ranks[model].append(1 + sum(other > merit for other in merits.values()))
    return {model: sum(found) / len(found) for model, found in ranks.items()}


def _result(experiment: Question, rates: Mapping[float, Sequence[Sequence[Row]]]) -> Result:
    best = max(rates, key=lambda rate: _merit(experiment, rates[rate]))
    runs = [run for run in rates[best] if run[0]["set"] != DIVERGED]
    values = [_value(run, FINAL, experiment.metric) for run in runs]
    if len(runs) < len(rates[best]):  # with a seed that diverged there is no mean
        values = [math.nan]
    first = rates[best][0][0]
    return Result(
        mean=float(np.mean(values)),
        spread=_spread(experiment, runs, values),
        seeds=len(rates[best]),
        learning_rate=best,
        rates=len(rates),
        parameters=first["parameters"],
        steps=tuple(run[0]["steps"] for run in rates[best]),
        curve=_curve(experiment, runs),
    )


def _merit(experiment: Question, runs: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """By which learning rates are compared; a seed that diverged is worse than any number."""
    set_name, metric = experiment.chosen_by
    numbers = [_value(run, set_name, metric) for run in runs]
    losses = [_value(run, set_name, "loss") for run in runs]
    sign = 1 if experiment.higher_is_better else -1
    if not all(map(math.isfinite, (*numbers, *losses))):
        return -math.inf, -math.inf
    return sign * float(np.mean(numbers)), -float(np.mean(losses))


def _value(run: Sequence[Row], set_name: str, metric: str) -> float:
    """A number of a run; NaN where it has none."""
    found = (r["value"] for r in run if r["set"] == set_name and r["metric"] == metric)
    return next(found, math.nan)


def _spread(
    experiment: Question, runs: Sequence[Sequence[Row]], values: Sequence[float]
) -> float | None:
    if len(values) > 1:
        deviation = float(np.std(values, ddof=1))
        if experiment.spread == "deviation":
            return deviation
        degrees = len(values) - 1
        t = T_995[degrees - 1] if degrees <= len(T_995) else Z_995
        return t * deviation / math.sqrt(len(values))
    if experiment.spread == "interval" and runs and experiment.metric == "accuracy":
        count = next(
            r["n"] for r in runs[0] if r["set"] == FINAL and r["metric"] == experiment.metric
        )
        return _wilson(values[0], count)
    return None


def _wilson(share: float, count: int) -> float:
    """Half of Wilson's 99 % interval of a share that was counted so often; also at 0 and 1 it has a
    width.
    """
    z, n = Z_995, count
    return z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))


def _curve(experiment: Question, runs: Sequence[Sequence[Row]]) -> dict[str, float]:
    if experiment.curve is None:
        return {}
    beginning, *_ = experiment.curve
    points: dict[str, list[Any]] = defaultdict(list)
    for run in runs:
        for row in run:
            name = row["metric"] if row["set"] == FINAL else row["set"]
            shown = row["set"] == FINAL or row["metric"] == experiment.metric
            if shown and name.startswith(beginning):
                points[name.removeprefix(beginning)].append(row["value"])
    names = sorted(points, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return {name: float(np.mean(points[name])) for name in names}
