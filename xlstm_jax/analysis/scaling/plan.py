"""Plans of new isoFLOP series: which sizes are trained on how many tokens, and with what commands.

A config file has the shapes that a series may have: its `get_series(preset)` returns, by the name
of a family of models, variants of the file. Each variant sets everything but the length of the run,
its learning rate included. The plan takes those whose sizes lie around the one that a budget is
expected to be best for, and trains each on as many tokens as the budget pays for.
"""

import json
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.analysis.flops import counting_of
from xlstm_jax.analysis.scaling.counts import Counts, counts_of
from xlstm_jax.config import load
from xlstm_jax.errors import UserError
from xlstm_jax.paths import check_can_be_written
from xlstm_jax.progress import counted

PLAN, COMMANDS, RUNS = "plan.jsonl", "commands.sh", "runs"


class PlannedRun(NamedTuple):
    """One run of a plan, a line of its file.

    Attributes:
        name: of its folder.
        model: its family.
        config: FILE:VARIANT.
        overrides: key -> value, beside those of the file.
        budget: FLOPs that it shares with the runs of its isoFLOP line.
        flops: that it takes, in whole steps.
        counting: how FLOPs were counted, see `analysis.flops.COUNTINGS`.
        params, params_without_embedding, tokens, steps, context, learning_rate: what they say.
    """

    name: str
    model: str
    config: str
    overrides: Mapping[str, Any]
    budget: float
    flops: float
    counting: str
    params: int
    params_without_embedding: int
    tokens: int
    steps: int
    context: int
    learning_rate: float


class Grid(NamedTuple):
    """Where the sizes of a budget lie.

    Attributes:
        sizes: per family and budget; a parabola needs three, its error some more.
        ratio: tokens per parameter at which the best size is expected: the middle.
        spread: the smallest and the largest size are the middle divided and multiplied by it.
    """

    sizes: int = 5
    ratio: float = 20.0
    spread: float = 3.0


def plan_series(
    file: str,
    series: Mapping[str, Sequence[str]],
    budgets: Sequence[float],
    counting: str,
    grid: Grid,
    overrides: Mapping[str, Any] | None = None,
) -> list[PlannedRun]:
    """The runs of a series, from the cheapest to the most expensive budget.

    Args:
        file: of configurations.
        series: family of models -> variants of the file.
        counting: of FLOPs, a name that `analysis.flops.counting_of` knows.
        overrides: keys of all runs.

    Raises:
        UserError: a family has too few shapes around a budget's middle, or a run would be too
            short for its own settings.
    """
    given = dict(overrides or {})
    families = {
        family: _Shapes(
            {v: counts_of(load(f"{file}:{v}", given), counting_of(counting)) for v in variants}
        )
        for family, variants in series.items()
    }
    planned = []
    for budget in sorted(budgets):
        for family, shapes in families.items():
            for variant in shapes.around(family, budget, grid):
                counts = shapes.counts[variant]
                planned.append(_planned(file, variant, family, budget, counts, counting, given))
    return planned


def _planned(
    file: str,
    variant: str,
    family: str,
    budget: float,
    counts: Counts,
    counting: str,
    overrides: Mapping[str, Any],
) -> PlannedRun:
    config = load(f"{file}:{variant}", overrides)
    of_step = config.data.batch_size * config.data.context_length
    steps = max(1, round(budget / (counts.flops_per_token * of_step)))
    warmup = config.optimizer.warmup_steps
    if steps < 2 * warmup:
        raise UserError(
            f"{budget:.3g} FLOPs pay for {steps} steps of {of_step} tokens with {variant} "
            f"({counts.params:,} parameters), of which optimizer.warmup_steps takes {warmup}; "
            "raise --flops, or lower data.batch_size or optimizer.warmup_steps"
        )
    # evaluated once, at the end, when the learning rate is down
    own = {"train.steps": steps, "eval.every": steps, **overrides}
    load(f"{file}:{variant}", own)  # refuses what can't be trained
    return PlannedRun(
        name=f"{_short(budget)}-{variant}",
        model=family,
        config=f"{file}:{variant}",
        overrides=own,
        budget=budget,
        flops=counts.flops_per_token * of_step * steps,
        counting=counting,
        params=counts.params,
        params_without_embedding=counts.params_without_embedding,
        tokens=of_step * steps,
        steps=steps,
        context=config.data.context_length,
        learning_rate=config.optimizer.learning_rate,
    )


class _Shapes:
    """The shapes of one family."""

    def __init__(self, counts: Mapping[str, Counts]) -> None:
        self.counts = counts

    def around(self, family: str, budget: float, grid: Grid) -> list[str]:
        """As many shapes as the grid has sizes, each the nearest to one of them, by size.

        The middle has `ratio` tokens per parameter: budget = FLOPs per token x ratio x parameters.
        """
        names = sorted(self.counts, key=lambda name: self.counts[name].params)
        params = np.array([self.counts[name].params for name in names], float)
        of_token = np.array([self.counts[name].flops_per_token for name in names])
        ratios = budget / of_token / params  # falls as models grow
        middle = float(np.exp(np.interp(-np.log(grid.ratio), -np.log(ratios), np.log(params))))
        low, high = middle / grid.spread, middle * grid.spread
        if not ratios[-1] <= grid.ratio <= ratios[0]:
            low = high = 0.0  # not even the middle is among the shapes
        chosen: list[str] = []
        for size in np.geomspace(low, high, grid.sizes) if low else ():
            # no shape twice: the next nearest
            near = [n for n in np.argsort(np.abs(np.log(params / size))) if names[n] not in chosen]
            if near and abs(np.log(params[near[0]] / size)) <= np.log(grid.spread) / 2:
                chosen.append(names[near[0]])
        if len(chosen) < grid.sizes:
            raise UserError(
                f"{family} has {len(chosen)} of the {grid.sizes} sizes that {budget:.3g} FLOPs "
                f"need: it has shapes of {params[0]:,.0f} to {params[-1]:,.0f} parameters, with "
                f"{ratios[0]:.3g} to {ratios[-1]:.3g} tokens for each, and wanted are sizes around "
                f"{grid.ratio:g} tokens, within a factor of {grid.spread:g}. Give other --flops, "
                "--sizes, --spread or --ratio, or add shapes to the config file"
            )
        return sorted(chosen, key=names.index)


def write_plan(folder: pathlib.Path, planned: Sequence[PlannedRun], train: str) -> None:
    """Writes the plan, and its commands for people and clusters: one line each, in order.

    Args:
        train: how commands begin, "python train.py".

    Raises:
        UserError: the folder has another plan, whose runs would no longer belong to it.
    """
    check_can_be_written("--output", str(folder))
    text = "".join(json.dumps(run._asdict()) + "\n" for run in planned)
    path = folder / PLAN
    if path.is_file() and path.read_text() != text:
        raise UserError(f"{str(path)!r} is another plan; give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{train} {shlex.join(arguments(folder, run))}" for run in planned]
    (folder / COMMANDS).write_text("\n".join(lines) + "\n")
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def read_plan(folder: pathlib.Path) -> list[PlannedRun]:
    """The plan of a folder; raises `UserError` where there is none or it is damaged."""
    path = folder / PLAN
    if not path.is_file():
        raise UserError(f"folder {str(folder)!r} has no {PLAN}; make one with the action plan")
    try:
        return [PlannedRun(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{str(path)!r} can't be used: {error}; plan anew, elsewhere") from None


def run_folder(folder: pathlib.Path, run: PlannedRun) -> pathlib.Path:
    """Where a run of the plan in `folder` lies."""
    return folder / RUNS / run.name


def arguments(folder: pathlib.Path, run: PlannedRun) -> list[str]:
    """What train.py is called with for a run."""
    overrides = [
        f"--config.{key}={'none' if value is None else value}"
        for key, value in run.overrides.items()
    ]
    return [f"--config={run.config}", f"--workdir={run_folder(folder, run)}", *overrides]


def plan_lines(planned: Sequence[PlannedRun]) -> list[str]:
    """A table for the terminal."""
    wide = max(len(run.config.rpartition(":")[2]) for run in planned)
    head = (
        f"{'FLOPs':>8}  {'shape':{wide}}  {'parameters':>12}  {'tokens':>15}  {'per parameter':>13}"
        f"  {'steps':>9}  {'peak rate':>9}"
    )
    rows = [
        f"{run.budget:8.3g}  {run.config.rpartition(':')[2]:{wide}}  {run.params:12,}  "
        f"{run.tokens:15,}  {run.tokens / run.params:13.1f}  {run.steps:9,}  "
        f"{run.learning_rate:9.2g}"
        for run in planned
    ]
    flops = sum(run.flops for run in planned)
    return [head, *rows, f"{counted(len(planned), 'run')}, {flops:.3g} FLOPs"]


def _short(budget: float) -> str:
    return f"{budget:.4g}".replace("+", "")
