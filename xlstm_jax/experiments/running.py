"""Runs a grid, one run or group of runs after another. What is done stays done: the same command
goes on.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from xlstm_jax.analysis.choosing import DIVERGED, FINAL, GUESS
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.command_line import wrapped
from xlstm_jax.config import Config, load, task_of
from xlstm_jax.data.splits import validation_sets
from xlstm_jax.errors import Diverged, UserError
from xlstm_jax.evaluation.frequencies import by_frequency, occurrences
from xlstm_jax.experiments import rows as results
from xlstm_jax.experiments.grid import Experiment, Run, groups_of
from xlstm_jax.experiments.together import train_together
from xlstm_jax.interop.opening import Opened, open_checkpoint
from xlstm_jax.parallel import make_mesh, replicated
from xlstm_jax.progress import counted, doing, duration
from xlstm_jax.runs.folder import find_run
from xlstm_jax.tasks.evaluation import evaluate, make_eval_step
from xlstm_jax.tasks.perplexity import Perplexity
from xlstm_jax.tasks.task import Task
from xlstm_jax.training.console import say
from xlstm_jax.training.loop import train


def config_of(
    experiment: Experiment, file: str, run: Run, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a run.

    Args:
        file: that has the experiment's variants.
        overrides: keys of all runs.

    Raises:
        UserError: the file has no such variant, or the configuration is not valid.
    """
    variant = experiment.variant.format(cell=run.cell, model=run.model, dim=run.dim)
    values = {
        "model.dim": run.dim,
        "optimizer.learning_rate": run.learning_rate,
        "optimizer.final_fraction": min(1.0, experiment.last_rate / run.learning_rate),
        "train.seed": run.seed,
        "log.tensorboard": False,
        **(overrides or {}),
    }
    config = load(f"{file}:{variant}", values)
    if experiment.stages > 1 and config.optimizer.decay_steps is None:
        # A run that goes on after each stage must know its whole schedule from the beginning.
        return load(f"{file}:{variant}", {**values, "optimizer.decay_steps": config.train.steps})
    return config


def run_grid(
    experiment: Experiment,
    name: str,
    preset: str,
    configs: Mapping[Run, Config],
    folder: pathlib.Path,
    together: int = 1,
) -> None:
    """Trains and tests what is not done yet.

    Args:
        configs: of the runs, in order.
        folder: below which each run has its own.
        together: runs of one cell and model that are trained in one program, at most.

    Raises:
        UserError: a run's folder has results of another configuration, or a run can't go on.
    """
    waiting = []
    for run, config in configs.items():
        task_of(config).check()
        if _is_done(folder / run.name, config):
            continue
        waiting.append(run)
    behind = len(configs) - len(waiting)
    say(f"{counted(len(configs), 'run')}, {behind} of them done; results in {folder}")
    started, done = time.monotonic(), 0
    for group in groups_of(waiting, together):
        labels = {run: _label(experiment, run) for run in group}
        for number, run in enumerate(group, done + 1):
            say(f"run {number} of {len(waiting)}: {labels[run]}")
        found = _rows_of(experiment, {run: configs[run] for run in group}, folder)
        for run, rows in found.items():
            results.write(
                folder / run.name, [{"experiment": name, "preset": preset, **row} for row in rows]
            )
        done += len(group)
        left = (time.monotonic() - started) / done * (len(waiting) - done)
        for run, rows in found.items():
            told = f"{labels[run]}: {_shown(experiment, rows)}; about {duration(left)} left"
            say(*wrapped(told))
        jax.clear_caches()  # other runs have other programs


def _label(experiment: Experiment, run: Run) -> str:
    return (
        f"{run.cell}, {experiment.models[run.model]}, dim {run.dim}, learning rate "
        f"{run.learning_rate:g}, seed {run.seed}"
    )


def _is_done(folder: pathlib.Path, config: Config) -> bool:
    there = results.read(folder)
    own = results.config_hash(config)
    if there and there[0]["config"] != own:
        raise UserError(
            f"folder {str(folder)!r} has results of another configuration ({there[0]['config']}, "
            f"this one is {own}); give another --workdir, or the same keys"
        )
    return bool(there)


def _rows_of(
    experiment: Experiment, configs: Mapping[Run, Config], folder: pathlib.Path
) -> dict[Run, list[dict[str, Any]]]:
    """Trains runs to their end and evaluates each on everything."""
    started = time.monotonic()
    diverged = _train(experiment, configs, folder)
    seconds = (time.monotonic() - started) / len(configs)
    return {
        run: _rows(experiment, run, config, folder / run.name, seconds, run in diverged)
        for run, config in configs.items()
    }


def _rows(
    experiment: Experiment,
    run: Run,
    config: Config,
    folder: pathlib.Path,
    seconds: float,
    diverged: bool,
) -> list[dict[str, Any]]:
    mesh = make_mesh(config.mesh)
    head = {
        **run._asdict(),
        "config": results.config_hash(config),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "seconds": round(seconds, 1),
    }
    task = task_of(config)
    if diverged:
        head |= {"parameters": None, "steps": _latest_step(folder)}
        nothing = {"set": DIVERGED, "metric": "loss", "value": float("nan"), "n": 0}
        found = [{**head, **nothing}]
    else:
        opened = open_checkpoint(str(folder), sharding=replicated(mesh))
        head |= {"parameters": count_parameters(opened.params), "steps": opened.step}
        measured = [*_measured(task, opened, config.eval.batch_size, mesh)]
        if experiment.frequencies:
            measured += _by_frequency(task, opened, config, mesh)
        found = [{**head, **row} for row in measured]
    for guess, summary in task.guesses().items():
        for metric, value in summary.items():
            row = {"set": f"{GUESS}{guess}", "metric": metric, "value": value, "n": 0}
            found.append({**head, **row})
    return found


def _measured(
    task: Task, opened: Opened, rows: int, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, Any]]:
    """Each number of each held-out and test set, with the weight of its mean."""
    eval_step = make_eval_step(task, opened.model)
    sets = {**task.held_out(), **task.test_sets()}
    for name, held_out in sets.items():
        with doing(f"evaluating on {name}", say), jax.set_mesh(mesh):
            totals = evaluate(eval_step, opened.params, held_out, rows, mesh)
        for metric, value in task.summary(totals).items():
            count = totals.get(metric, totals["loss"])[1]
            yield {"set": name, "metric": metric, "value": value, "n": int(count)}


def _by_frequency(
    task: Task, opened: Opened, config: Config, mesh: jax.sharding.Mesh
) -> Iterator[dict[str, Any]]:
    """Perplexity of the test text, or without one of the held-out text, and of those of its tokens
    that the training text has about equally often.
    """
    held_out = "test" if "test" in validation_sets(config.data) else "validation"
    with doing(f"grouping the tokens of {held_out} by their frequency", say), jax.set_mesh(mesh):
        bins = by_frequency(
            opened.model,
            opened.params,
            task.held_out_of(task.named_source(held_out)),
            occurrences(task.source, config.model.vocab_size),
            batch_size=config.eval.batch_size,
            mesh=mesh,
            reset_at_document=config.data.reset_at_document,
        )
    tokens, nats = sum(found.tokens for found in bins), sum(found.nats for found in bins)
    whole = Perplexity(nats, tokens).perplexity
    yield {"set": FINAL, "metric": "perplexity", "value": whole, "n": tokens}
    for found in bins:
        if found.tokens:
            name = found.name.replace(",", "").replace(" ", "_")
            value = {"metric": f"perplexity_at_{name}", "value": found.perplexity}
            yield {"set": FINAL, **value, "n": found.tokens}


def _train(experiment: Experiment, configs: Mapping[Run, Config], folder: pathlib.Path) -> set[Run]:
    """Trains runs of one length to the last step, or to the end of a stage after which the task is
    solved; returns those that diverged.
    """
    left, diverged = dict(configs), set()
    whole = next(iter(configs.values())).train.steps
    for steps in _stages(experiment, whole):
        part = {
            run: dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
            for run, config in left.items()
            if _latest_step(folder / run.name) <= steps
        }
        for run, summary in _trained(part, folder).items():
            if summary is None:
                diverged.add(run)
                del left[run]
                continue
            value = summary.get(experiment.metric)
            if experiment.solved is not None and value is not None and value >= experiment.solved:
                del left[run]
                if steps < whole:
                    say(f"{run.name}: solved after {steps} of {whole} steps")
    return diverged


def _trained(
    configs: Mapping[Run, Config], folder: pathlib.Path
) -> dict[Run, Mapping[str, float] | None]:
    """Trains runs; the last held-out summary of each, None of one that diverged."""
    if len(configs) > 1:
        found = train_together({folder / run.name: config for run, config in configs.items()})
        return dict(zip(configs, found.values(), strict=True))
    try:
        return {
            run: train(config, folder / run.name, advice=False) for run, config in configs.items()
        }
    except Diverged as error:
        say(f"diverged: {error}")
        return dict.fromkeys(configs)


def _stages(experiment: Experiment, steps: int) -> list[int]:
    """The last steps of the stages."""
    stages = min(experiment.stages, steps)
    return [steps * (number + 1) // stages for number in range(stages)]


def _latest_step(folder: pathlib.Path) -> int:
    """Of the newest checkpoint; 0 without one."""
    names = (path.name for path in find_run(folder).checkpoints.glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _shown(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """A run's result for the terminal."""
    values = {row["set"]: row["value"] for row in rows if row["metric"] == experiment.metric}
    metric = experiment.metric.replace("_", " ")
    if rows[0]["set"] == DIVERGED:
        return "diverged"
    return f"{metric} " + ", ".join(
        f"{value:.3f} ({name})" for name, value in values.items() if not name.startswith(GUESS)
    )
