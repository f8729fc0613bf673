"""Runs that differ in learning rate and seed alone, trained in one program.

All of them see the same batches (`data.seed` is theirs too). The states are stacked; on a GPU or
TPU, which a small model leaves idle, a step is `vmap` of the trainer's own. A CPU has no idle
parts: there each step does the runs one after another, whose arrays then stay in its caches.

Each run has a folder as if it had been trained alone, with its own checkpoints: either way may go
on with what the other has begun.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xlstm_jax.config import Config, flat, task_of
from xlstm_jax.errors import Diverged, UserError
from xlstm_jax.models.remat import AUTO
from xlstm_jax.parallel import batch_sharding, make_mesh, platform, put_batch
from xlstm_jax.progress import counted, doing
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.folder import (
    RunFolder,
    check_data,
    open_run,
    to_ourselves,
    write_config,
    write_data_record,
)
from xlstm_jax.tasks.evaluation import evaluate, make_eval_step
from xlstm_jax.tasks.task import Batch, Task
from xlstm_jax.training.callbacks import Callbacks, Run
from xlstm_jax.training.console import say, step_name
from xlstm_jax.training.loop import (
    FIRST,
    check_finite,
    check_length_of_run,
    keep_compiled,
    not_saved,
    shown,
)
from xlstm_jax.training.metrics import read_records
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.preemption import Preemption
from xlstm_jax.training.report import Report
from xlstm_jax.training.starting import Keeper
from xlstm_jax.training.state import TrainState
from xlstm_jax.training.step import Metrics, train_step
from xlstm_jax.training.timing import WallTime
from xlstm_jax.training.writers import writers_of

OWN_KEYS = {"optimizer.learning_rate", "optimizer.final_fraction", "train.seed"}
JointStep = Callable[[TrainState, Batch, int], tuple[TrainState, Metrics]]
Summary = Mapping[str, float]


def make_joint_step(
    task: Task, model: nn.Module, configs: Sequence[Config], *, side_by_side: bool
) -> JointStep:
    """The jitted step of several runs: their states, stacked, a batch and the step's number to the
    next states (the given ones are donated) and their metrics, stacked. A state that is ahead of
    the step stays as it is.

    Args:
        configs: of the runs, equal but for `OWN_KEYS`.
        side_by_side: under `vmap`, else one after another.
    """
    common = configs[0]
    schedules = [make_schedule(config.optimizer, config.train.steps) for config in configs]
    seeds = jnp.array([config.train.seed for config in configs], jnp.uint32)

    def of_run(number: jax.Array, state: TrainState, batch: Batch, step: jax.Array):
        def schedule(count: jax.Array) -> jax.Array:
            return jnp.stack([own(count) for own in schedules])[number]

        optimizer = make_optimizer(common.optimizer, schedule)
        following, metrics = train_step(
            task, model, optimizer, schedule, common.train, seeds[number], state, batch
        )
        due = state.step < step
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), following, state), metrics

    def joint_step(states: TrainState, batch: Batch, step: jax.Array):
        def one(numbered: tuple[jax.Array, TrainState]):
            return of_run(*numbered, batch, step)

        numbered = jnp.arange(len(configs)), states
        return jax.vmap(one)(numbered) if side_by_side else jax.lax.map(one, numbered)

    return jax.jit(joint_step, donate_argnums=0)


@jax.jit
def of_number(states: Any, number: int) -> Any:
    """The tree of one run."""
    return jax.tree.map(lambda leaf: leaf[number], states)


def train_together(configs: Mapping[pathlib.Path, Config]) -> dict[pathlib.Path, Summary | None]:
    """Trains, or goes on with, the runs by their folders; returns the last held-out summary of
    each, None of one that diverged: it stays at its last checkpoint while the others go on.

    Raises:
        UserError: data, folders, configurations or checkpoints are not as they should be, or there
            are several devices.
        Preempted: the process got SIGTERM; the runs are saved.
    """
    config = next(iter(configs.values()))
    mesh, task, steps = make_mesh(config.mesh), task_of(config), config.train.steps
    _check_can_be_together(list(configs.values()), mesh)
    task.check()
    folders = {path: open_run(path, own) for path, own in configs.items()}
    for folder in folders.values():
        check_data(folder, task.record())
        keep_compiled(folder)
    with (
        jax.set_mesh(mesh),
        contextlib.ExitStack() as opened,
        Preemption(config.train.grace_seconds) as preemption,
    ):
        with doing("preparing the models' parameters", say):
            group = [
                _Member(folders[path], own, task, mesh, opened) for path, own in configs.items()
            ]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.begun for one in group))
        model = task.model(stacked=True)
        side_by_side = platform() != "cpu"
        step_of_all = make_joint_step(
            task, model, list(configs.values()), side_by_side=side_by_side
        )
        eval_step, held_out = make_eval_step(task, model), task.held_out()
        to_devices = batch_sharding(
            mesh,
            config.data.batch_size,
            config.data.context_length,
            accumulation_steps=config.train.accumulation_steps,
        )

        def summary_of(number: int, name: str) -> Summary:
            params = of_number(states.params, number)
            rows = config.eval.batch_size
            return task.summary(evaluate(eval_step, params, held_out[name], rows, mesh))

        start, pending = min(one.start for one in group), None
        first = start + 1
        preemption.saved(start or None)
        batches = task.batches(start, range(config.data.batch_size))
        for step in range(first, steps + 1):
            batch = put_batch(next(batches), to_devices)
            what = f"compiling the training step of {counted(len(group), 'run')}"
            with doing(what, say) if step == first else contextlib.nullcontext():
                states, metrics = step_of_all(states, batch, np.int32(step))
            if pending is not None:
                _tell(group, *pending)
            pending = step, metrics
            preempted = preemption.reached(step)
            evaluated = step % config.eval.every == 0 or step == steps
            saved = preempted or any(one.checkpoints.due(step) for one in group)
            if not evaluated and not saved:
                continue
            _tell(group, *pending)
            pending = None
            for number, one in enumerate(group):
                if one.is_training(step) and evaluated:
                    one.evaluated(step, {name: summary_of(number, name) for name in held_out})
                if one.is_training(step) and saved:
                    loss = one.summary["loss"] if evaluated else None
                    one.save(of_number(states, number), step, loss, force=preempted)
            if preempted and step < steps:
                left = [one for one in group if not one.diverged]
                raise preemption.ended_at(step, saved=all(one.is_saved(step) for one in left))
            preemption.saved(min(one.checkpoints.latest_step() or 0 for one in group) or None)
        preemption.nothing_to_save()
        for number, one in enumerate(group):
            if one.diverged:
                continue
            if one.summary is None:  # it was finished already
                one.summary = summary_of(number, FIRST)
            one.finished()
    return {path: one.summary for path, one in zip(configs, group, strict=True)}


class _Member:
    """What a run of the group has on its own.

    Attributes:
        begun, start: its state when the group begins, and the step of it.
        summary: of the last evaluation; None before it, and where the run diverged.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        task: Task,
        mesh: Mesh,
        opened: contextlib.ExitStack,
    ) -> None:
        model = task.model(stacked=True)
        optimizer = make_optimizer(
            config.optimizer, make_schedule(config.optimizer, config.train.steps)
        )
        opened.enter_context(to_ourselves(folder))
        self.checkpoints = opened.enter_context(Checkpoints(folder, config))
        self._keeper = Keeper(task, model, optimizer, config, self.checkpoints, mesh)
        self.begun, self.start = self._keeper.start()
        check_length_of_run(config.train.steps, self.start)
        write_config(folder, config)
        write_data_record(folder, task.record())
        self.run = Run(config, folder, task, self.start)
        self._told = opened.enter_context(Callbacks(writers_of(self.run)))
        self._told.before_training(self.run)
        times = WallTime(read_records(folder.metrics))  # all that the group does is training
        kind = mesh.devices.flat[0].device_kind
        self._report = Report(self.run, model, self._told, times, kind, 1, tell=lambda line: None)
        self.summary: Summary | None = None
        self.diverged = False

    def is_training(self, step: int) -> bool:
        """Whether the step is one of this run's: it was not ahead of it, and has not diverged."""
        return step > self.start and not self.diverged

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """A step is done."""
        if self.is_training(step):
            with self._ends_diverged():
                self._report(step, values)

    def evaluated(self, step: int, found: Mapping[str, Summary]) -> None:
        """The numbers of the held-out sets after a step."""
        self._report.pause()
        with self._ends_diverged():
            check_finite(step, found[FIRST]["loss"])
            self._told.after_evaluation(step, found)
            self.summary = found[FIRST]
        begin = f"{step_name(step, self.run.config.train.steps)}  {self.run.folder.root.name}"
        for name, summary in found.items():
            say(f"{begin}, {shown(name)}: {self.run.task.line(summary)}")

    def save(self, state: TrainState, step: int, loss: float | None, *, force: bool) -> None:
        """Starts saving."""
        saved = self._keeper.by_number(state)
        self._told.before_checkpoint(step, saved.params)
        self._keeper.save(saved, step, loss, force=force)

    def finished(self) -> None:
        """All steps are done."""
        if not self.is_saved(self.run.config.train.steps):
            raise UserError(not_saved(self.run, self.checkpoints))
        self._told.after_training(self.summary)

    def is_saved(self, step: int) -> bool:
        """Whether the newest checkpoint, the one that is being written included, is of this step
        or a later one.
        """
        self.checkpoints.finish()
        return (self.checkpoints.latest_step() or 0) >= step

    @contextlib.contextmanager
    def _ends_diverged(self) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            say(f"{self.run.folder.root.name} diverged: {error}")
            self.summary, self.diverged = None, True


def _tell(group: Sequence[_Member], step: int, metrics: Metrics) -> None:
    """What is told of a step: of all runs in one line."""
    values = jax.device_get(metrics)
    for number, one in enumerate(group):
        one.metrics(step, {name: value[number] for name, value in values.items()})
    run = group[0].run
    if run.shows(step):
        losses = ", ".join(f"{loss:.4f}" for loss in values["loss"])
        say(f"{step_name(step, run.config.train.steps)}  losses {losses}")


def _check_can_be_together(configs: Sequence[Config], mesh: Mesh) -> None:
    first = flat(configs[0])
    for config in configs[1:]:
        others = {name for name, value in flat(config).items() if value != first[name]}
        if others - OWN_KEYS:
            raise ValueError(f"runs of one program differ in {sorted(others - OWN_KEYS)}")
    if mesh.size > 1:
        raise UserError(
            f"--together trains several runs on one device, and there are {mesh.size}; leave it "
            "out, or show this process one device (CUDA_VISIBLE_DEVICES=0)"
        )
    refused = {"model.remat": first["model.remat"] == AUTO, "log.wandb": first["log.wandb"]}
    for key in (key for key, is_refused in refused.items() if is_refused):
        raise UserError(
            f"config key {key} is {first[key]!r}, which runs that are trained together can't have; "
            "leave out --together, or that key"
        )
