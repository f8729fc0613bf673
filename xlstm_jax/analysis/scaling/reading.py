"""Runs from wherever they are: a table, the folder of one of our own runs, or a folder of many."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xlstm_jax.analysis.flops import counting_of
from xlstm_jax.analysis.scaling.counts import counts_of
from xlstm_jax.analysis.scaling.plan import PLAN, PlannedRun, read_plan, run_folder
from xlstm_jax.analysis.scaling.table import Run, read_table
from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import RunFolder, find_run

COUNTING = "published"


class Reading(NamedTuple):
    """Runs of a source, and the folders of those that are not finished and therefore left out."""

    runs: list[Run]
    unfinished: list[str]


def read_runs(
    path: str, names: Mapping[str, str] | None = None, counting: str = COUNTING
) -> list[Run]:
    """`read` without those that are not finished."""
    return read(path, names, counting).runs


def read(path: str, names: Mapping[str, str] | None = None, counting: str = COUNTING) -> Reading:
    """The runs of a CSV file, of a file of JSON lines, of a run's folder, of the folder of a plan,
    or of a folder of runs.

    A run counts with the held-out loss after its last step: before that its learning rate is
    still high, which costs more than parameters and tokens bring.

    Args:
        names: column of `Run` -> what it is called in the file, where that differs.
        counting: of the FLOPs of our own runs, as `analysis.flops.counting_of` knows it; runs of a
            plan keep their plan's.

    Raises:
        UserError: there is nothing there, a file is no table, or a run is damaged.
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_dir():
        return Reading(read_table(path, names), [])
    if (place / PLAN).is_file():
        planned = [(run_folder(place, run), run) for run in read_plan(place)]
        found = [(folder, _of_plan(folder, run)) for folder, run in planned]
    elif (place / "config.json").is_file():
        found = [(place, _of_folder(place, counting))]
    else:
        folders = sorted(config.parent for config in place.glob("*/config.json"))
        if not folders:
            raise UserError(
                f"folder {path!r} holds no runs: no {PLAN}, no config.json and no folder with one"
            )
        found = [(folder, _of_folder(folder, counting)) for folder in folders]
    runs = [run for _, run in found if run is not None]
    return Reading(runs, [str(folder) for folder, run in found if run is None])


def final_loss(folder: RunFolder, steps: int) -> float | None:
    """The held-out loss of a run after its last step, in nats per token; None before that."""
    try:
        lines = folder.metrics.read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = None
    for line in lines:
        try:
            event = json.loads(line)
            if event["split"] == "validation" and event["step"] == steps:
                found = float(event["loss"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed run left unfinished, or another event
    return found if found is not None and 0 < found < float("inf") else None


def _of_plan(path: pathlib.Path, run: PlannedRun) -> Run | None:
    loss = final_loss(RunFolder(path), run.steps)
    if loss is None:
        return None
    return Run(
        params=run.params,
        tokens=run.tokens,
        loss=loss,
        model=run.model,
        params_without_embedding=run.params_without_embedding,
        flops=run.flops,
        budget=run.budget,
        context=run.context,
        source=run.name,
    )


def _of_folder(path: pathlib.Path, counting: str) -> Run | None:
    folder = find_run(path)
    config = folder.read_config()
    loss = final_loss(folder, config.train.steps)
    if loss is None:
        return None
    counts = counts_of(config, counting_of(counting))
    tokens = config.train.steps * config.data.batch_size * config.data.context_length
    return Run(
        params=counts.params,
        tokens=tokens,
        loss=loss,
        model=config.model.blocks,
        params_without_embedding=counts.params_without_embedding,
        flops=counts.flops_per_token * tokens,
        context=config.data.context_length,
        source=str(path),
    )


def unfinished_line(unfinished: Sequence[str]) -> str:
    """For the terminal."""
    first, more = unfinished[0], len(unfinished) - 1
    return f"not finished and left out: {first}" + (f" and {more} more" if more else "")
