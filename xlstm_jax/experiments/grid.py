"""What an experiment is: a grid of runs, and how its results are chosen and shown."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xlstm_jax.errors import UserError


class Experiment(NamedTuple):
    """A grid of runs of one config file.

    Attributes:
        title: of the report.
        variant: of the config file, with the places {cell}, {model} and perhaps {dim}.
        cells: what is learned: languages, sizes of a problem; columns of the report.
        models: the names of models in variants, and how the paper calls them.
        dims: by cell, model.dim of the runs.
        learning_rates: by cell, those that every model is trained with; the best one is shown.
        last_rate: at the end of each schedule, whatever its peak.
        seeds: runs of each learning rate, train.seed 0, 1, ...
        metric: what is shown, a number of the test sets' summary.
        chosen_by: held-out set and number by which the learning rate is chosen; where they are
            equal the loss of that set decides.
        higher_is_better: of both numbers.
        solved: a run ends where the number of the first held-out set reaches it; None: never.
        stages: into how many parts a run is cut, after which that is asked.
        spread: "deviation" (standard deviation over seeds) or "interval" (99 %, of their mean).
        figure: "heat map" of models and cells, "bars", "dims" (curves over dims), or "groups" (bars
            for each point of the curve, a colour for each model).
        curve: beginning of the names of test numbers, or of more test sets, that make a curve,
            what it goes over, and what the numbers are.
        paper: by the paper's name of the model and by cell.
        left_out: cells of the paper that can't be, and why.
        absent: models that this version of the code does not have, and why.
        frequencies: whether perplexity is also told by how often the training text has a token; of
            experiments whose data are text.
        ranked: whether the report tells the mean rank of each model over the cells.
        reduced: the runs are smaller than the paper's.
        notes: decisions that a reader of the report has to know.
    """

    title: str
    variant: str
    cells: tuple[str, ...]
    models: Mapping[str, str]
    dims: Mapping[str, tuple[int, ...]]
    learning_rates: Mapping[str, tuple[float, ...]]
    last_rate: float
    seeds: int
    metric: str
    chosen_by: tuple[str, str]
    higher_is_better: bool = True
    solved: float | None = None
    stages: int = 1
    spread: str = "deviation"
    figure: str = "heat map"
    curve: tuple[str, str, str] | None = None
    paper: Mapping[str, Mapping[str, float]] = {}
    left_out: Mapping[str, str] = {}
    absent: Mapping[str, str] = {}
    frequencies: bool = False
    ranked: bool = False
    reduced: bool = True
    notes: tuple[str, ...] = ()


class Run(NamedTuple):
    """One run of a grid."""

    cell: str
    model: str
    dim: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.cell}-{self.model}-d{self.dim}-lr{self.learning_rate:g}-seed{self.seed}"


def runs_of(experiment: Experiment) -> list[Run]:
    """All runs; those of one cell and model stand together, so that parts of the grid are whole."""
    return [
        Run(cell, model, dim, rate, seed)
        for cell, model in itertools.product(experiment.cells, experiment.models)
        if model not in experiment.absent
        for dim in experiment.dims[cell]
        for rate in experiment.learning_rates[cell]
        for seed in range(experiment.seeds)
    ]


def narrowed(
    experiment: Experiment,
    *,
    cells: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    seeds: int | None = None,
) -> Experiment:
    """The experiment with fewer, or other, runs; None leaves what it has.

    Raises:
        UserError: there is no such cell or model, or the cell can't be.
    """
    for cell in cells or ():
        if cell in experiment.left_out:
            raise UserError(f"--cells has {cell!r}, which can't be: {experiment.left_out[cell]}")
        if cell not in experiment.cells:
            raise UserError(f"--cells has {cell!r}; there are {', '.join(experiment.cells)}")
    for model in models or ():
        if model not in experiment.models:
            raise UserError(f"--models has {model!r}; there are {', '.join(experiment.models)}")
        if model in experiment.absent:
            raise UserError(f"--models has {model!r}: {experiment.absent[model]}")
    kept = tuple(cells or experiment.cells)
    rates = {
        cell: tuple(learning_rates or rates) for cell, rates in experiment.learning_rates.items()
    }
    return experiment._replace(
        cells=kept,
        models={name: experiment.models[name] for name in models or experiment.models},
        dims={cell: tuple(dims or own) for cell, own in experiment.dims.items()},
        learning_rates=rates,
        seeds=seeds or experiment.seeds,
    )


def groups_of(runs: Sequence[Run], most: int) -> list[tuple[Run, ...]]:
    """The runs in order, those of one cell, model and dim in groups of at most so many: they differ
    in learning rate and seed alone.
    """
    alike = itertools.groupby(runs, key=lambda run: (run.cell, run.model, run.dim))
    return [group for _, found in alike for group in _batched(found, most)]


def _batched(runs: Iterable[Run], most: int) -> Iterator[tuple[Run, ...]]:
    """As itertools.batched of Python 3.12."""
    runs = iter(runs)
    while group := tuple(itertools.islice(runs, most)):
        yield group


def part_of(groups: Sequence[Any], part: tuple[int, int]) -> list[Any]:
    """The groups of one of several processes: with (3, 8) the third of every eight."""
    number, parts = part
    return list(groups[number - 1 :: parts])
