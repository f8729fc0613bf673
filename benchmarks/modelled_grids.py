"""How long an H100 should take for the paper's experiments with small models, rows of
docs/results/grids.jsonl, which docs/paper.md takes its device hours from.

    python -m benchmarks.modelled_grids               # an environment with jax[cuda13]
    python -m benchmarks.modelled_grids --only "mqar.*xlstm" --again

Of each model of a grid the step of one run, its first cell at the largest dimension, is compiled
for one H100 that is not there, as in benchmarks.modelled_speeds: modelled, not measured. The others
are taken to need the same time for each token. A step that one device has no memory for, as Llama's
of rare_tokens, counts as if it had. Rows that are there are kept, so that it can be stopped.
"""

import argparse
import datetime
import itertools
import json
import re

import jax

from benchmarks.modelled_speeds import DEVICE, HOW, ROOT, TOPOLOGY
from benchmarks.provenance import commit
from xlstm_jax import config_files
from xlstm_jax.analysis.paper.catalogue import GRIDS
from xlstm_jax.config import Config
from xlstm_jax.experiments.grid import Experiment, Run, runs_of
from xlstm_jax.experiments.running import config_of
from xlstm_jax.training.aot import compile_step

FILE = ROOT / "docs/results/grids.jsonl"
FIELDS = ("grid", "model")  # that tell a row


def row_of(grid: str, model: str) -> dict:
    """The modelled step of a model of a grid, and the hours of all its runs, as a row."""
    file = str(ROOT / "configs" / grid)
    experiment = config_files.experiment(file, "paper")
    cell = experiment.cells[0]
    rate, dim = experiment.learning_rates[cell][0], max(experiment.dims[cell])
    config = config_of(experiment, file, Run(cell, model, dim, rate, 0))
    milliseconds = compile_step(config, TOPOLOGY).model.milliseconds
    hours = milliseconds / 3.6e6 / tokens_of(config) * tokens_in_all(experiment, file, model)
    return {
        "grid": grid,
        "model": model,
        "cell": cell,
        "dim": dim,
        "step_ms": round(milliseconds, 3),
        "hours": round(hours, 2),
        "device": DEVICE,
        "how": HOW,
        "commit": commit(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on FILE:MODEL")
    parser.add_argument("--again", action="store_true", help="rows that are there too")
    given = parser.parse_args()
    for grid in GRIDS:
        experiment = config_files.experiment(str(ROOT / "configs" / grid), "paper")
        for model in experiment.models:
            rows = [json.loads(x) for x in FILE.read_text().splitlines()] if FILE.exists() else []
            others = [row for row in rows if [row[name] for name in FIELDS] != [grid, model]]
            there = len(others) < len(rows)
            name = f"{grid}:{model}"
            if model in experiment.absent or not re.search(given.only, name):
                continue
            if there and not given.again:
                continue
            row = row_of(grid, model)
            FILE.write_text("".join(json.dumps(one) + "\n" for one in [*others, row]))
            print(f"{name}: {row['step_ms']} ms a step, {row['hours']} hours", flush=True)


if __name__ == "__main__":
    main()
