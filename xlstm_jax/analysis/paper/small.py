"""Results of the experiments with small models, as tables of models by what they learned."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xlstm_jax import config_files
from xlstm_jax.analysis.choosing import Result, results_of
from xlstm_jax.analysis.paper.results import Results
from xlstm_jax.errors import UserError
from xlstm_jax.progress import counted


class Cell(NamedTuple):
    """A number of ours.

    Attributes:
        spread: over seeds, or of the number of samples; None where there is none.
        share: whether it is one, from 0 to 1.
    """

    mean: float
    spread: float | None
    seeds: int
    share: bool = True

    @property
    def text(self) -> str:
        """As it is written into tables and figures."""
        if math.isnan(self.mean):
            return "diverged"
        form = ".2f" if self.share else ".3g"
        spread = "" if self.spread is None else f"±{self.spread:{form}}"
        return f"{self.mean:{form}}{spread}"


class Found(NamedTuple):
    """The results of an experiment.

    Attributes:
        title: whose they are, and at which scale.
        columns: what was learned.
        values: model -> column -> number.
    """

    title: str
    columns: tuple[str, ...]
    values: Mapping[str, Mapping[str, Cell]]


def accuracies(results: Results, file: str) -> Found:
    """The results of an experiment's file below configs/, of the largest preset of which there are
    rows; of several dimensions that of the best mean.

    Raises:
        UserError: there are rows of a preset that the file does not have.
    """
    stem = file.removesuffix(".py")
    presets = [preset for name, preset in results.experiments if name == stem]
    if not presets:
        return Found("", (), {})
    preset = "paper" if "paper" in presets else presets[0]
    rows = results.experiments[stem, preset]
    try:
        experiment = config_files.experiment(f"configs/{file}", preset)
    except UserError as error:
        raise UserError(f"rows of the experiment {stem!r}: {error}") from None
    found: dict[tuple[str, str], Result] = {}
    sign = 1 if experiment.higher_is_better else -1
    for (cell, model, _), result in results_of(experiment, rows).items():
        there = found.get((cell, model))
        if there is None or not sign * there.mean >= sign * result.mean:
            found[cell, model] = result
    known = [cell for cell in experiment.cells if any(key[0] == cell for key in found)]
    others = sorted({cell for cell, _ in found} - set(known))
    columns = (*known, *others)
    values = {
        experiment.models.get(model, model): {
            cell: Cell(result.mean, result.spread, result.seeds, "accuracy" in experiment.metric)
            for (cell, name), result in found.items()
            if name == model
        }
        for model in [
            *(name for name in experiment.models if any(key[1] == name for key in found)),
            *sorted({model for _, model in found} - set(experiment.models)),
        ]
    }
    steps = sorted({count for result in found.values() for count in result.steps})
    seeds = sorted({result.seeds for result in found.values()})
    scale = "ours, reduced scale" if experiment.reduced else "ours"
    title = f"{scale}: {_span(steps, 'step')}, {_span(seeds, 'seed')}"
    return Found(title, columns, values)


def _span(numbers: Sequence[int], noun: str) -> str:
    """1 seed, or 1 to 2 seeds, of numbers in order."""
    begin = "" if numbers[0] == numbers[-1] else f"{numbers[0]:,} to "
    return f"{begin}{counted(numbers[-1], noun)}"


class Grid(NamedTuple):
    """An experiment at the paper's sizes.

    Attributes:
        names: the paper's name of a model -> its name on the command line.
        absent: the paper's name of a model that the code does not have -> why.
        runs: how many, of all learning rates, dimensions and seeds.
    """

    names: Mapping[str, str]
    absent: Mapping[str, str]
    runs: int


def grid_of(file: str) -> Grid:
    """The grid of a file below configs/, at the paper's sizes."""
    experiment = config_files.experiment(f"configs/{file}", "paper")
    there = [name for name in experiment.models if name not in experiment.absent]
    runs = sum(
        len(there) * len(experiment.dims[cell]) * len(experiment.learning_rates[cell])
        for cell in experiment.cells
    )
    return Grid(
        {experiment.models[name]: name for name in there},
        {experiment.models[name]: why for name, why in experiment.absent.items()},
        runs * experiment.seeds,
    )


def hours_of(results: Results, file: str) -> dict[str, float]:
    """Device hours of all runs of each model of a grid at the paper's sizes, by the model's name on
    the command line; of models whose step was modelled.
    """
    return {row["model"]: row["hours"] for row in results.grids if row["grid"] == file}


def hours_of_all(results: Results, file: str) -> float | None:
    """Of a whole grid; None where a model's are not known."""
    hours = hours_of(results, file)
    names = grid_of(file).names.values()
    return sum(hours[name] for name in names) if set(names) <= hours.keys() else None
