"""How long an H100 should take for the paper's experiments with small models, rows of
docs/results/grids.jsonl, which docs/paper.md takes its device hours from.

    python -m benchmarks.modelled_grids               # an environment with jax[cuda13]
    python -m benchmarks.modelled_grids --only "mqar.*xlstm" --again

Of each model of a grid the step of one run, its first cell at the largest dimension, is compiled
for one H100 that is not there, as in benchmarks.modelled_speeds: modelled, not measured. The others
are taken to need the same time for each token. A step that one device has no memory for, as Llama's
of rare_tokens, counts as if it had. Rows that are there are kept, so that it can be stopped.
"""

import itertools

from benchmarks import modelled_rows
from benchmarks.modelled_rows import DEVICE, HOW, ROOT, TOPOLOGY, Row
from xlstm_jax import config_files
from xlstm_jax.analysis.paper.catalogue import GRIDS
from xlstm_jax.config import Config
from xlstm_jax.experiments.grid import Experiment, Run, runs_of
from xlstm_jax.experiments.running import config_of
from xlstm_jax.training.aot import compile_step

FILE = modelled_rows.RESULTS / "grids.jsonl"


def grid_of(file: str) -> Experiment:
    """The experiment of a file below configs/, at the paper's sizes."""
    return config_files.experiment(str(ROOT / "configs" / file), "paper")


def names() -> list[str]:
    """FILE:MODEL of every model of every grid."""
    grids = {file: grid_of(file) for file in GRIDS}
    return [f"{file}:{model}" for file, grid in grids.items() for model in grid.models
            if model not in grid.absent]  # fmt: skip


def row_of(name: str) -> Row:
    """The modelled step of a model of a grid, and the hours of all its runs, as a row."""
    file, _, model = name.partition(":")
    grid, path = grid_of(file), str(ROOT / "configs" / file)
    cell = grid.cells[0]
    rate, dim = grid.learning_rates[cell][0], max(grid.dims[cell])
    config = config_of(grid, path, Run(cell, model, dim, rate, 0))
    milliseconds = compile_step(config, TOPOLOGY).model.milliseconds
    hours = milliseconds / 3.6e6 / tokens_of(config) * tokens_in_all(grid, path, model)
    return {
        "grid": file,
        "model": model,
        "cell": cell,
        "dim": dim,
        "step_ms": round(milliseconds, 3),
        "hours": round(hours, 2),
        "device": DEVICE,
        "how": HOW,
    }


def tokens_of(config: Config) -> int:
    """Of a step."""
    return config.data.batch_size * config.data.context_length


def tokens_in_all(experiment: Experiment, file: str, model: str) -> int:
    """Of all runs of a model; those of one cell have the same steps and batches."""
    total = 0
    for _, runs in itertools.groupby(runs_of(experiment), lambda run: run.cell):
        some = [run for run in runs if run.model == model]
        config = config_of(experiment, file, some[0])
        total += len(some) * config.train.steps * tokens_of(config)
    return total


def main() -> None:
    """Makes the rows that are missing."""
    modelled_rows.make(
        __doc__, FILE, names(), lambda row, name: f"{row['grid']}:{row['model']}" == name, row_of
    )


if __name__ == "__main__":
    main()
