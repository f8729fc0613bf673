"""A training run from top to bottom: data, folder, state, the loop, and what is shown at the end.

The device never waits for the host: step n's metrics are read after step n+1 was dispatched. Where
the host needs the state itself (evaluation, checkpoint, the end) they are read first.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.command_line import printable
from xlstm_jax.config import AnyConfig, Config, as_config, flat, task_of
from xlstm_jax.errors import Diverged, UserError
from xlstm_jax.generation import generate
from xlstm_jax.generation.session import room_of
from xlstm_jax.models.remat import AUTO, stack_of
from xlstm_jax.parallel import (
    batch_sharding,
    check_length,
    check_same_everywhere,
    check_shared_folder,
    check_spread,
    everywhere,
    make_mesh,
    own_part,
    put_batch,
    start_processes,
)
from xlstm_jax.progress import doing
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.folder import (
    RunFolder,
    check_data,
    open_run,
    own_tokenizer,
    to_ourselves,
    write_config,
    write_data_record,
)
from xlstm_jax.tasks.evaluation import evaluate, make_eval_step
from xlstm_jax.tasks.task import Task
from xlstm_jax.training.callbacks import Callback, Callbacks, Run, check_callbacks
from xlstm_jax.training.console import next_commands, say, step_name
from xlstm_jax.training.memory import fixed
from xlstm_jax.training.metrics import read_records
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.outlets import Trouble
from xlstm_jax.training.preemption import Preemption
from xlstm_jax.training.profile import Profile
from xlstm_jax.training.report import Report
from xlstm_jax.training.starting import Keeper
from xlstm_jax.training.step import make_train_step
from xlstm_jax.training.timing import WallTime
from xlstm_jax.training.watchdog import Watchdog
from xlstm_jax.training.writers import writers_of


def train(
    config: AnyConfig,
    workdir: str | os.PathLike,
    callbacks: Sequence[Callback] = (),
    *,
    profile: tuple[int, int] | None = None,
    advice: bool = True,
) -> Mapping[str, float]:
    """Trains, or goes on with, the run in `workdir`; returns the last held-out summary.

    Args:
        config: a `Config`, a ConfigDict, or a config file such as "configs/quickstart.py".
        workdir: the run's folder; made if it does not exist.
        callbacks: are told of steps, evaluations and checkpoints (`training/callbacks.py`), after
            the run's own writers. What one of them raises ends the run and is raised.
        profile: first and last step of which a trace is written to `workdir`/profile.
        advice: whether the commands that may follow are printed at the end.

    Raises:
        UserError: data, folder, configuration or checkpoint are not as they should be, or too many
            steps in a row were skipped.
        Preempted: the process got SIGTERM, or Ctrl-C (a notebook's stop button); the run is saved,
            and the same call goes on with it.
    """
    config = as_config(config)
    check_callbacks(callbacks)
    start_processes(config.train.heartbeat_seconds)
    check_same_everywhere(flat(config) | {"--profile": profile}, "configurations")
    # What can be wrong is found before any device works and before anything is written.
    folder = everywhere(lambda: open_run(workdir, config))
    check_shared_folder(folder.root, "--workdir")
    config = own_tokenizer(folder, config)
    keep_compiled(folder)
    task, steps = task_of(config), config.train.steps
    schedule = make_schedule(config.optimizer, steps)
    with doing("reading the data", say):
        everywhere(task.check)
    data_record = task.record()
    check_same_everywhere(data_record, "data")
    check_data(folder, data_record)
    say(*task.description())

    mesh = make_mesh(config.mesh)
    if config.model.remat == AUTO:
        before = folder.read_config() if folder.config.exists() else None
        config = fixed(config, mesh, before, say)
        check_same_everywhere({"model.remat": config.model.remat}, "choices")
        task = task_of(config)
    rows, length = config.data.batch_size, config.data.context_length
    to_devices = batch_sharding(
        mesh, rows, length, accumulation_steps=config.train.accumulation_steps
    )
    held_out = task.held_out()
    for held in held_out.values():
        check_length(mesh, held.time)
    model, optimizer = task.model(stacked=True), make_optimizer(config.optimizer, schedule)
    with (
        to_ourselves(folder),
        jax.set_mesh(mesh),
        Checkpoints(folder, config) as checkpoints,
        Preemption(config.train.grace_seconds) as preemption,
        Watchdog(config.train.watchdog_seconds, ends=config.train.watchdog_ends) as watchdog,
        Profile(folder.profile, profile) as profiler,
    ):
        wall_time = WallTime(read_records(folder.metrics))
        check_length_of_run(steps, checkpoints.latest_step())
        preemption.saved(checkpoints.latest_step())
        keeper = Keeper(task, model, optimizer, config, checkpoints, mesh)
        with wall_time.spent_on("checkpoint"), doing("preparing the model's parameters", say):
            state, start = keeper.start()
        check_spread(state.params, mesh)
        write_config(folder, config)
        with Trouble("data.json").caught():
            write_data_record(folder, data_record)
        device = mesh.devices.flat[0].device_kind
        say(f"model: {count_parameters(state.params):,} parameters, on {mesh.size} x {device}")
        say(f"run: {folder.root}")
        if start == steps:
            say(f"finished: all {steps} steps are done; what follows is evaluated anew")

        train_step = make_train_step(task, model, optimizer, schedule, config.train)
        eval_step = make_eval_step(task, model)

        def summary_of(name: str) -> Mapping[str, float]:
            with doing(f"evaluating on {shown(name)}", say):
                totals = evaluate(
                    eval_step, state.params, held_out[name], config.eval.batch_size, mesh
                )
            return task.summary(totals)

        def evaluated(step: int) -> Mapping[str, Mapping[str, float]]:
            summaries = {}
            for name in held_out:
                summaries[name] = found = summary_of(name)
                if name == FIRST:
                    check_finite(step, found["loss"])
                if name != FIRST or step < steps:
                    say(f"{step_name(step, steps)}  {shown(name)}: {task.line(found)}")
            return summaries

        run, summary, pending = Run(config, folder, task, start), None, None
        with Callbacks([*writers_of(run), *callbacks]) as told:
            told.before_training(run)
            report = Report(run, model, told, wall_time, device, mesh.size)
            part, parts = own_part(to_devices, rows, length)
            own_rows = range(part * rows // parts, (part + 1) * rows // parts)
            batches = task.batches(start, own_rows)
            for step in range(start + 1, steps + 1):
                with wall_time.spent_on("data"):
                    batch = put_batch(next(batches), to_devices, part, parts)
                profiler.before(step)
                if step == start + 1:
                    with (
                        wall_time.spent_on("compile"),
                        doing("compiling the training step; a restart finds it compiled", say),
                    ):
                        state, metrics = train_step(state, batch)
                else:
                    watchdog.step()
                    state, metrics = train_step(state, batch)
                if pending is not None:
                    report(*pending)
                pending = (step, metrics)
                profiler.after(step, metrics)

                evaluation_due = step % config.eval.every == 0 or step == steps
                preempted = preemption.reached(step)
                if not (evaluation_due or preempted or checkpoints.due(step)):
                    continue
                report(*pending)
                pending, summary = None, None
                watchdog.pause()
                if evaluation_due:
                    with wall_time.spent_on("evaluation"):
                        told.after_evaluation(step, summaries := evaluated(step))
                    summary = summaries[FIRST]
                if preempted or checkpoints.due(step):
                    with wall_time.spent_on("checkpoint"):
                        saved = keeper.by_number(state)
                        told.before_checkpoint(step, saved.params)
                        loss = None if summary is None else summary["loss"]
                        keeper.save(saved, step, loss, force=preempted)
                        del saved  # where blocks are stacked it is a copy
                if preempted and step < steps:
                    checkpoints.finish()
                    raise preemption.ended_at(step, saved=checkpoints.latest_step() == step)
                preemption.saved(checkpoints.latest_step())
                report.pause()  # what this took is no training time

            checkpoints.finish()
            preemption.saved(checkpoints.latest_step())
            preemption.nothing_to_save()
            if summary is None:  # the run was finished already
                summary = summary_of(FIRST)
            say(f"{shown(FIRST)} {task.closing_line(summary)}")
            if config.eval.sample_tokens and task.tokenizer is not None:
                text = sample_of(task, state.params, config)
                told.after_sample(steps, text)
                say(f"sample:\n{printable(text)}")
            if checkpoints.latest_step() != steps:
                raise UserError(not_saved(run, checkpoints))
            told.after_training(summary)
    say(folder.loss_figure, *(next_commands(workdir, config, task.writes_text) if advice else ()))
    return summary


FIRST = "validation"  # the held-out set by which checkpoints are judged


def shown(name: str) -> str:
    """A held-out set as a person reads it."""
    return "held-out" if name == FIRST else name.removeprefix(f"{FIRST}/")


def keep_compiled(folder: RunFolder) -> None:
    """Compiled programs are found again beside the run, unless JAX_COMPILATION_CACHE_DIR names
    another place.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update(
            "jax_compilation_cache_dir", str(folder.root.parent / "compilation_cache")
        )


def not_saved(run: Run, checkpoints: Checkpoints) -> str:
    """What a person is told when the last step could not be saved."""
    return (
        f"all {run.config.train.steps} steps are done, but the last one could not be saved; make "
        f"room on the disk of {str(run.folder.checkpoints)!r} and give the same command again, it "
        f"goes on from step {checkpoints.latest_step() or 0}"
    )


def check_length_of_run(steps: int, done: int | None) -> None:
    """Raises `UserError` where a run has more steps behind it than it is to have."""
    if done is not None and done > steps:
        raise UserError(
            f"config key train.steps is {steps}, but the run has done {done} steps already; give "
            "at least as many"
        )


def check_finite(step: int, loss: float) -> None:
    """Raises `Diverged` where the held-out loss is no number: training is beyond help."""
    if not math.isfinite(loss):
        raise Diverged(
            f"step {step}: the held-out loss is {loss}; training stops, earlier checkpoints are "
            "kept. Lower optimizer.learning_rate or optimizer.clip_norm, lengthen "
            "optimizer.warmup_steps, or look at the data, in another --workdir"
        )


def sample_of(task: Task, params: Any, config: Config) -> str:
    """Text of the trained model: a new document of `eval.sample_tokens` tokens, drawn one recurrent
    step at a time.
    """
    tokenizer = task.tokenizer
    stack = stack_of(config.model.layout, config.model.remat, stacked=True)
    prompt = np.full((1, 1), tokenizer.end_of_text, np.int32)
    room = room_of(config.model, None) - 1  # learned positions, one of them for the prompt
    with doing("writing a sample", say):
        tokens = generate(
            task.model(),
            {"params": stack.by_number(params)},
            prompt,
            min(config.eval.sample_tokens, room),
            jax.random.key(config.train.seed),
            num_choices=tokenizer.vocab_size,
        )
        return tokenizer.decode(np.asarray(tokens[0]))
