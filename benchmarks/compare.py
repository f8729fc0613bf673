"""Trains the models that the paper compares, at a size that two CPU cores train, and writes what
they reach beside the paper's numbers.

    python -m benchmarks.compare [--rows=table1] [--workdir=runs/comparison]
        [--table=docs/comparison.md] [--jsonl=benchmarks/results/comparison.jsonl]
        [--speeds=again]
        [--config.data.path=PATH --config.data.validation_path=PATH ...]

The rows are those of configs/comparison.py. They follow one another; what is done stays done, and
what was stopped, at any point, goes on with the same command. After each row its speed is measured
and the report is written again, with all rows that are done. With --speeds=again the speeds of the
rows that are there are measured once more, in one run, and nothing is trained: for a machine that
did other things meanwhile. Every row reads the same text: by
default the standard library's source; --config.data.path names another one, prepared or not, and
--config.data.validation_sets=test=PATH a test set, which is then shown in place of the held-out set
that learning rates are chosen by. `--config.SECTION.KEY` sets a key of all rows.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import comparison_report
from configs.comparison import GROUPS
from xlstm_jax import command_line, config_files, config_flags
from xlstm_jax.analysis.choosing import FINAL, Result, results_of
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import Config
from xlstm_jax.data.splits import validation_sets
from xlstm_jax.errors import Diverged, UserError
from xlstm_jax.evaluation.speed import time_lengths
from xlstm_jax.experiments import rows as results
from xlstm_jax.experiments.grid import Experiment, Run, narrowed, runs_of
from xlstm_jax.experiments.running import config_of, run_grid
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.interrupts import Preempted
from xlstm_jax.paths import check_can_be_written
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training.console import end_of_output, say
from xlstm_jax.training.loop import train
from xlstm_jax.training.metrics import read_records

FILE, PRESET = "configs/comparison.py", "small"
FLAGS = {
    "rows": "names of configs/comparison.py, or table1 (the default), ladder, gates, memory",
    "workdir": "has a folder for each run; runs/comparison by default",
    "table": "the report, figures beside it; docs/comparison.md by default",
    "jsonl": "the rows behind it; benchmarks/results/comparison.jsonl by default",
    "speeds": "again: measure those of the rows that are done once more, and train nothing",
}
TEST = "validation/test"  # the held-out set that is shown where it is there
OF_EMBEDDINGS = ("embedding", "position_embedding", "embedding_norm", "lm_head")
DECODED, REPETITIONS = 256, 3
TIMED_STEPS, TIMED_EVERY = 40, 5
ROW = "row.json"  # of a model, in the folder of its best run


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS, config_flags.without_config)
        folder = pathlib.Path(flags.workdir or "runs/comparison").expanduser()
        table = pathlib.Path(flags.table or "docs/comparison.md")
        jsonl = pathlib.Path(flags.jsonl or "benchmarks/results/comparison.jsonl")
        for name, path in (("workdir", folder), ("table", table.parent), ("jsonl", jsonl.parent)):
            check_can_be_written(f"--{name}", path)
        arguments = config_flags.take_apart(argv)
        if arguments.file is not None:
            raise UserError(
                f"--config names a file, but the rows are those of {FILE}; leave it out"
            )
        overrides = {
            key: config_flags.parse(key, text) for key, text in arguments.overrides.items()
        }
        experiment = config_files.experiment(FILE, PRESET)
        chosen = narrowed(experiment, models=names_of(flags.rows or "table1"))
        configs = {run: config_of(chosen, FILE, run, overrides) for run in runs_of(chosen)}
        if flags.speeds not in (None, "again"):
            raise UserError(f"--speeds is {flags.speeds!r}; write --speeds=again, or leave it out")
        again = flags.speeds is not None
        there = {row["row"] for row in finished(experiment, folder)} if again else None
        if again and not there & set(chosen.models):
            raise UserError(f"--speeds=again finds no row that is done in {str(folder)!r}")
        try:
            for model in chosen.models:
                if again and model not in there:
                    continue
                own = {run: config for run, config in configs.items() if run.model == model}
                run_grid(chosen, "comparison", PRESET, own, folder)
                measure(experiment, own, folder, again)
                found = finished(experiment, folder)
                comparison_report.write(found, table, jsonl)
                say(f"{len(found)} rows are done: {table}")
        finally:
            end_of_output()

    try:
        return command_line.run(command, "the same command goes on")
    except Preempted as saved:
        print(saved, file=sys.stderr, flush=True)
        return saved.status


def names_of(text: str) -> list[str]:
    """The rows of a list of names and groups, each once."""
    rows = (row for name in text.split(",") for row in GROUPS.get(name, (name,)))
    return list(dict.fromkeys(rows))


def measure(
    experiment: Experiment, configs: Mapping[Run, Config], folder: pathlib.Path, again: bool
) -> None:
    """Writes the row of a model whose runs are done, unless it is there for the same runs and need
    not be measured again.
    """
    rows = [row for run in configs for row in results.read(folder / run.name)]
    shown = shown_set(next(iter(configs.values())))
    result = best_of(experiment, rows, shown)
    best = next(run for run in configs if run.learning_rate == result.learning_rate)
    path = folder / best.name / ROW
    hashes = sorted({row["config"] for row in rows})
    if not again and path.is_file() and json.loads(path.read_text())["configs"] == hashes:
        return
    row = {
        "row": best.model,
        "model": experiment.models[best.model],
        "perplexity": result.mean,
        "set": shown,
        "learning_rate": best.learning_rate,
        "perplexities": {run.learning_rate: _perplexity(rows, run) for run in configs},
        "paper_perplexity": experiment.paper.get(experiment.models[best.model], {}).get(best.cell),
        "configs": hashes,
        **_text_of(configs[best], folder / best.name),
        **_speeds(configs[best], folder / best.name),
        "machine": _machine(rows[0]["devices"]),
    }
    unfinished = path.with_name(f"{ROW}.tmp")
    unfinished.write_text(json.dumps(comparison_report.finite(row)) + "\n")
    unfinished.replace(path)


def finished(experiment: Experiment, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows that are there, in the experiment's order.

    Raises:
        UserError: they did not all read the same text, or as much of it.
    """
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*/{ROW}"), key=lambda path: path.stat().st_mtime):
        row = json.loads(path.read_text())
        newest[row["row"]] = row
    found = [newest[name] for name in experiment.models if name in newest]
    for row in found:
        for key in ("text", "tokens", "set"):
            if row[key] != found[0][key]:
                raise UserError(
                    f"folder {str(folder)!r} has rows that can't be compared: {key} of "
                    f"{found[0]['row']} is {found[0][key]!r}, that of {row['row']} {row[key]!r}; "
                    "give another --workdir"
                )
    return found


def shown_set(config: Config) -> str:
    """The test set where there is one, else the held-out set."""
    return TEST if "test" in validation_sets(config.data) else "validation"


def best_of(experiment: Experiment, rows: Sequence[results.Row], shown: str) -> Result:
    """The number of the set `shown`, with the learning rate that held-out data chose."""
    tests = [{**row, "set": FINAL} for row in rows if row["set"] == shown]
    (result,) = results_of(experiment, [*rows, *tests]).values()
    return result


def _perplexity(rows: Sequence[results.Row], run: Run) -> float | None:
    """The held-out perplexity of a run; None where it diverged."""
    own = (row for row in rows if row["learning_rate"] == run.learning_rate)
    values = (r["value"] for r in own if (r["set"], r["metric"]) == ("validation", "perplexity"))
    return next(values, None)


def _text_of(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """What was read, and the curve of the training loss: [tokens, nats per token]."""
    run = find_run(folder)
    per_step = config.data.batch_size * config.data.context_length
    data = json.loads((run.root / "data.json").read_text())
    return {
        "text": {name: entry["fingerprint"] for name, entry in sorted(data.items())},
        "data": "/".join(pathlib.Path(config.data.path).parts[-2:]),  # of no one machine
        "tokenizer": config.data.tokenizer,
        "tokens": config.train.steps * per_step,
        "curve": [
            [record["step"] * per_step, record["loss"]]
            for record in read_records(run.metrics)
            if record["split"] == "train" and record.get("loss") is not None
        ],
    }


def _speeds(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Tokens/s of training and of decoding one text, and parameters, of a run that is done."""
    try:
        opened = open_checkpoint(str(folder))
    except UserError:  # all its runs diverged before a checkpoint was due
        return {"parameters": None, "without_embeddings": None, "training": None, "decoding": None}
    (timing,) = time_lengths(opened.model, opened.params, (DECODED,), REPETITIONS)
    params = opened.params
    embeddings = sum(count_parameters(params[name]) for name in OF_EMBEDDINGS if name in params)
    jax.clear_caches()  # the next row has other programs
    return {
        "parameters": count_parameters(params),
        "without_embeddings": count_parameters(params) - embeddings,
        "training": _training_speed(config),
        "decoding": timing.tokens_per_second,
    }


def _training_speed(config: Config) -> float | None:
    """Tokens/s of a short run of its own: the median over its logged parts but the first; None
    where it diverges.
    """
    short = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=TIMED_STEPS),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=config.train.steps),
        log=dataclasses.replace(config.log, every=TIMED_EVERY),
        eval=dataclasses.replace(config.eval, every=TIMED_STEPS),
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(short, pathlib.Path(folder), advice=False)
        except Diverged:
            return None
        records = list(read_records(find_run(pathlib.Path(folder)).metrics))
    jax.clear_caches()  # the next row has other programs
    logged = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")]
    return statistics.median(logged[1:])


def _machine(devices: str) -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "devices": devices,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
