"""A training run from top to bottom: data, folder, state, the loop, and what is shown at the end.

The device never waits for the host: step n's metrics are read after step n+1 was dispatched. Where
the host needs the state itself (evaluation, checkpoint, the end) they are read first.
"""

import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xlstm_jax.analysis.flops import peak_flops, training_flops_per_token
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import Config
from xlstm_jax.data.loader import (
    TokenSource,
    check_samples,
    open_split,
    open_validation_sets,
    position,
    record,
    train_batches,
)
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.perplexity import (
    Perplexity,
    check_scored,
    gzip_bits_per_byte,
    make_eval_step,
    perplexity_of,
)
from xlstm_jax.generation import generate
from xlstm_jax.models import LanguageModel, build_model
from xlstm_jax.parallel import (
    batch_sharding,
    check_length,
    check_same_everywhere,
    check_shared_folder,
    check_spread,
    everywhere,
    is_first_process,
    make_mesh,
    own_part,
    put_batch,
    start_processes,
)
from xlstm_jax.progress import doing
from xlstm_jax.training.checkpoints import Checkpoints, read_params
from xlstm_jax.training.console import console_line, next_commands, say, skipped_line, step_name
from xlstm_jax.training.metrics import MetricsWriter, draw_loss, read_records
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.outlets import Trouble, replace_file
from xlstm_jax.training.preemption import Preemption
from xlstm_jax.training.profile import Profile
from xlstm_jax.training.run_folder import (
    RunFolder,
    check_data,
    open_run,
    own_tokenizer,
    write_config,
    write_data_record,
)
from xlstm_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    shardings_of,
    start_from,
)
from xlstm_jax.training.step import Metrics, make_train_step
from xlstm_jax.training.timing import Speed, WallTime
from xlstm_jax.training.watchdog import Watchdog


def train(
    config: Config, workdir: str | os.PathLike, profile: tuple[int, int] | None = None
) -> Perplexity:
    """Trains, or goes on with, the run in `workdir`; returns the last held-out evaluation.

    Args:
        profile: first and last step of which a trace is written to `workdir`/profile.

    Raises:
        UserError: data, folder, configuration or checkpoint are not as they should be, or too many
            steps in a row were skipped.
        Preempted: the process got SIGTERM; the run is saved.
    """
    start_processes(config.train.heartbeat_seconds)
    check_same_everywhere(_flat(config) | {"--profile": profile}, "configurations")
    # What can be wrong is found before any device works and before anything is written.
    folder = everywhere(lambda: open_run(workdir, config))
    check_shared_folder(folder.root, "--workdir")
    config = own_tokenizer(folder, config)
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR names another
        jax.config.update(
            "jax_compilation_cache_dir", str(folder.root.parent / "compilation_cache")
        )
    schedule = make_schedule(config.optimizer, config.train.steps)
    with doing("reading the data", say):
        source, held_out, more_held_out = everywhere(lambda: _open_data(config))
    sets = {"validation": held_out, **more_held_out}
    contents = {
        name: position(one, config.data, 0) for name, one in {"train": source, **sets}.items()
    }
    check_same_everywhere(contents, "data")
    data_record = record(source, sets, config.data)
    check_data(folder, data_record)
    say(*source.description, *held_out.description)
    for name, other in more_held_out.items():
        say(*(f"{name}: {line}" for line in other.description))

    mesh = make_mesh(config.mesh)
    accumulation_steps = config.train.accumulation_steps
    to_devices = batch_sharding(
        mesh,
        config.data.batch_size,
        config.data.context_length,
        accumulation_steps=accumulation_steps,
    )
    check_length(mesh, config.eval.context_length)
    steps = config.train.steps
    model, optimizer = build_model(config.model), make_optimizer(config.optimizer, schedule)
    wall_time = WallTime(read_records(folder.metrics))
    with (
        jax.set_mesh(mesh),
        Checkpoints(folder, config) as checkpoints,
        Preemption(config.train.grace_seconds) as preemption,
        Watchdog(config.train.watchdog_seconds, ends=config.train.watchdog_ends) as watchdog,
        Profile(folder.profile, profile) as profiler,
    ):
        preemption.saved(checkpoints.latest_step())
        with wall_time.spent_on("checkpoint"), doing("preparing the model's parameters", say):
            state, start = _starting_state(model, optimizer, config, source, checkpoints, mesh)
        check_spread(state.params, mesh)
        write_config(folder, config)
        with Trouble("data.json").caught():
            write_data_record(folder, data_record)
        device = mesh.devices.flat[0].device_kind
        say(f"model: {count_parameters(state.params):,} parameters, on {mesh.size} x {device}")
        say(f"run: {folder.root}")
        if start == steps:
            say(f"finished: all {steps} steps are done; what follows is evaluated anew")

        train_step = make_train_step(model, optimizer, schedule, config)
        evaluate = functools.partial(
            perplexity_of,
            make_eval_step(model, config.data.reset_at_document),
            config=config,
            mesh=mesh,
        )
        speed = Speed(steps)
        peak = peak_flops(device)
        flops_share = training_flops_per_token(config.model) / (peak * mesh.size) if peak else None
        result, pending = None, None
        drawing, sampling = Trouble(folder.loss_figure.name), Trouble(folder.samples.name)

        with MetricsWriter(
            folder, start, tensorboard=config.log.tensorboard, wandb=config.log.wandb
        ) as writer:

            def report(step: int, metrics: Metrics) -> None:
                values = read_metrics(metrics)
                speed.count(values["tokens"])
                if values["skipped_in_a_row"]:
                    report_skipped(step, values)
                elif step == 1 or step == steps or step % config.log.every == 0:
                    rate, seconds_left = speed.read(step)
                    values |= {
                        "tokens_per_second": rate,
                        "tokens_per_second_per_device": rate and rate / mesh.size,
                    }
                    values["mfu"] = rate * flops_share if rate and flops_share else None
                    writer.write(step, "train", values | wall_time.values())
                    say(console_line(step, steps, values, seconds_left, mesh.size))

            def report_skipped(step: int, values: dict[str, Any]) -> None:
                samples = {
                    "first_sample": (step - 1) * config.data.batch_size,
                    "last_sample": step * config.data.batch_size - 1,
                }
                writer.write(step, "skipped", values | samples)
                say(skipped_line(step, steps, values, **samples))
                if (in_a_row := values["skipped_in_a_row"]) >= config.train.max_skipped:
                    raise UserError(
                        f"step {step}: {in_a_row} steps in a row were skipped (train.max_skipped "
                        f"{config.train.max_skipped}), the loss is "
                        f"{values['loss']}; their samples are "
                        f"{samples['last_sample'] + 1 - in_a_row * config.data.batch_size} to "
                        f"{samples['last_sample']}, more in {folder.metrics}. Parameters and "
                        f"checkpoints are as before. Lower "
                        "optimizer.learning_rate or optimizer.clip_norm, lengthen "
                        "optimizer.warmup_steps, or look at the data, in another "
                        "--workdir"
                    )

            part, parts = own_part(to_devices, config.data.batch_size, config.data.context_length)
            batches = train_batches(source, config.data, start, part=part, parts=parts)
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
                pending, result = None, None
                watchdog.pause()
                if evaluation_due:
                    with wall_time.spent_on("evaluation"), doing(evaluating("held-out"), say):
                        result = evaluate(state.params, held_out)
                    _check_finite(step, result.loss)
                    writer.write(step, "validation", result.values())
                    for name, other in more_held_out.items():
                        with wall_time.spent_on("evaluation"), doing(evaluating(name), say):
                            also = evaluate(state.params, other)
                        writer.write(step, f"validation/{name}", also.values())
                        say(f"{step_name(step, steps)}  {name}: {also.line()}")
                    _draw_loss(folder, drawing)
                    if step < steps:
                        say(f"{step_name(step, steps)}  held-out {result.line()}")
                if preempted or checkpoints.due(step):
                    with wall_time.spent_on("checkpoint"):
                        loss, place = (
                            None if result is None else result.loss,
                            position(source, config.data, step),
                        )
                        checkpoints.save(state, step, place, loss, force=preempted)
                if preempted and step < steps:
                    checkpoints.finish()
                    raise preemption.ended_at(step, saved=checkpoints.latest_step() == step)
                preemption.saved(checkpoints.latest_step())
                speed.pause()  # what this took is no training time

            checkpoints.finish()
            preemption.saved(checkpoints.latest_step())
            preemption.nothing_to_save()
            if result is None:  # the run was finished already
                with doing(evaluating("held-out"), say):
                    result = evaluate(state.params, held_out)
            say(f"held-out {result.line(gzip_bits_per_byte(held_out, config.eval.max_tokens))}")
            if config.eval.sample_tokens:
                with doing("writing a sample", say):
                    text = sample_text(model, state.params, held_out, config)
                writer.write_sample(steps, text)
                if is_first_process():
                    with sampling.caught():
                        replace_file(folder.samples, f"step {steps}\n{text}\n".encode())
                say(f"sample:\n{text}")
        if checkpoints.latest_step() != steps:
            raise UserError(
                f"all {steps} steps are done, but the last one could not be saved; make room on "
                f"the disk of {str(folder.checkpoints)!r} and give the same command again, it goes "
                f"on from step {checkpoints.latest_step() or 0}"
            )
    _draw_loss(folder, drawing)
    say(folder.loss_figure, *next_commands(workdir))
    return result


def evaluating(name: str) -> str:
    """What is said of an evaluation that takes a while."""
    return f"evaluating the {name} text" if name == "held-out" else f"evaluating {name}"


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, keys in json.loads(config.to_json()).items()
        for key, value in keys.items()
    }


def _open_data(config: Config) -> tuple[TokenSource, TokenSource, Mapping[str, TokenSource]]:
    """The text to train on, the held-out one and further held-out ones."""
    vocab_size = config.model.vocab_size
    source = open_split(config.data, "train", vocab_size)
    held_out = open_split(config.data, "validation", vocab_size)
    more = open_validation_sets(config.data, vocab_size)
    check_samples(source, config.data)
    for scored in (held_out, *more.values()):
        check_scored(scored, config)
    return source, held_out, more


def read_metrics(metrics: Metrics) -> dict[str, Any]:
    """A step's metrics as numbers on the host, which waits until the step is done."""
    return {name: value.item() for name, value in jax.device_get(metrics).items()}


def _draw_loss(folder: RunFolder, trouble: Trouble) -> None:
    if is_first_process():
        with trouble.caught():
            draw_loss(folder)


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"step {step}: the held-out loss is {loss}; training stops, earlier checkpoints are "
            f"kept. Lower optimizer.learning_rate or "
            "optimizer.clip_norm, lengthen optimizer.warmup_steps, or look at the data, in another "
            "--workdir"
        )


def _starting_state(
    model: LanguageModel,
    optimizer: Any,
    config: Config,
    source: TokenSource,
    checkpoints: Checkpoints,
    mesh: jax.sharding.Mesh,
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and step; else, at step 0, the parameters of
    `checkpoint.init_from` or fresh ones.
    """
    abstract = abstract_state(model, optimizer, config.train, mesh)
    shardings = shardings_of(abstract)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        state, found, start = restored
        expected = position(source, config.data, start)
        if found != expected:
            raise UserError(
                f"the data have changed since step {start} was saved: then {found}, now "
                f"{expected}; give another --workdir"
            )
        say(f"resumed from step {start}")
        return state, start
    if config.checkpoint.init_from is not None:
        step, params = read_params(config.checkpoint.init_from, abstract.params)
        say(f"parameters of step {step} of {config.checkpoint.init_from}")
        return jax.jit(
            lambda params: start_from(params, optimizer, config.train), out_shardings=shardings
        )(params), 0
    return jax.jit(lambda: init_state(model, optimizer, config.train), out_shardings=shardings)(), 0


def sample_text(model: LanguageModel, params: Any, source: TokenSource, config: Config) -> str:
    """`eval.sample_tokens` tokens of a new document, drawn one recurrent step at a time."""
    prompt = np.full((1, 1), source.end_of_text, np.int32)
    tokens = generate(
        model,
        {"params": params},
        prompt,
        config.eval.sample_tokens,
        jax.random.key(config.train.seed),
        num_choices=source.tokenizer.vocab_size,
    )
    return source.tokenizer.decode(np.asarray(tokens[0]))
