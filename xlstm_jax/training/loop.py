"""A training run from top to bottom: data, folder, state, the loop, and what is shown at the end.

The device never waits for the host: step n's metrics are read after step n+1 was dispatched. Where the host needs the state
itself (evaluation, checkpoint, the end) they are read first, so that no state that came from a bad step is saved.
"""

import functools
import math
from typing import Any

import jax
import numpy as np

from xlstm_jax.analysis.flops import peak_flops, training_flops_per_token
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import Config
from xlstm_jax.data.loader import TokenSource, open_split, train_batches
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.perplexity import Perplexity, make_eval_step, perplexity_of
from xlstm_jax.generation import generate
from xlstm_jax.models import LanguageModel, build_model
from xlstm_jax.parallel import batch_sharding, make_mesh, replicated
from xlstm_jax.training.checkpoints import Checkpoints, read_params
from xlstm_jax.training.metrics import MetricsWriter, Speed, console_line, draw_loss
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.run_folder import open_run, write_config
from xlstm_jax.training.state import TrainState, abstract_params, abstract_state, init_state, start_from
from xlstm_jax.training.step import Metrics, make_train_step


def train(config: Config, workdir: str) -> Perplexity:
    """Trains, or goes on with, the run in `workdir`; returns the last held-out evaluation.

    Raises:
        UserError: data, folder, configuration or checkpoint are not as they should be, or the loss is no longer finite.
    """
    # What can be wrong is found before any device works and before anything is written.
    folder = open_run(workdir, config)
    schedule = make_schedule(config.optimizer, config.train.steps)
    source = open_split(config.data, "train", config.model.vocab_size)
    held_out = open_split(config.data, "validation", config.model.vocab_size)
    train_batches(source, config.data)  # refuses a source that is shorter than one sample
    print(*source.description, *held_out.description, sep="\n", flush=True)

    mesh = make_mesh(config.mesh)
    to_devices = batch_sharding(mesh, config.data.batch_size)
    steps = config.train.steps
    model, optimizer = build_model(config.model), make_optimizer(config.optimizer, schedule)
    with jax.set_mesh(mesh), Checkpoints(folder, config.checkpoint, steps) as checkpoints:
        state, start = _starting_state(model, optimizer, config, source, checkpoints, mesh)
        write_config(folder, config)
        device = mesh.devices.flat[0].device_kind
        print(f"model: {count_parameters(state.params):,} parameters, on {mesh.size} x {device}; run: {folder.root}", flush=True)

        train_step = make_train_step(model, optimizer, schedule, config)
        evaluate = functools.partial(
            perplexity_of, make_eval_step(model, config.data.reset_at_document), config=config, mesh=mesh
        )
        speed = Speed(steps)
        peak = peak_flops(device)
        flops_share = training_flops_per_token(config.model) / (peak * mesh.size) if peak else None
        result, pending = None, None

        with MetricsWriter(folder, start, tensorboard=config.log.tensorboard) as writer:

            def report(step: int, metrics: Metrics) -> None:
                values = read_metrics(step, metrics)
                speed.count(values["tokens"])
                if step == 1 or step == steps or step % config.log.every == 0:
                    rate, seconds_left = speed.read(step)
                    values["tokens_per_second"] = rate
                    values["mfu"] = rate * flops_share if rate and flops_share else None
                    writer.write(step, "train", values)
                    print(console_line(step, steps, values, seconds_left), flush=True)

            batches = train_batches(source, config.data, start)
            for step in range(start + 1, steps + 1):
                state, metrics = train_step(state, jax.device_put(next(batches), to_devices))
                if pending is not None:
                    report(*pending)
                pending = (step, metrics)

                evaluation_due = step % config.eval.every == 0 or step == steps
                if not (evaluation_due or checkpoints.due(step)):
                    continue
                report(*pending)
                pending, result = None, None
                if evaluation_due:
                    result = evaluate(state.params, held_out)
                    _check_finite(step, "held-out loss", result.loss)
                    writer.write(step, "validation", result.values())
                    draw_loss(folder)
                    if step < steps:
                        print(f"step {step:>{len(str(steps))}}/{steps}  {result.line()}", flush=True)
                if checkpoints.due(step):
                    position = _position(source, config, step)
                    checkpoints.save(state, step, position, None if result is None else result.loss)
                speed.pause()  # what this took is no training time

        if result is None:  # the run was finished already
            result = evaluate(state.params, held_out)
        print(f"held-out {result.line(held_out.gzip_bits_per_byte())}", flush=True)
        if config.eval.sample_tokens:
            text = sample_text(model, state.params, held_out, config)
            folder.samples.write_text(f"step {steps}\n{text}\n")
            print(f"sample:\n{text}", flush=True)
    draw_loss(folder)
    print(folder.loss_figure, flush=True)
    return result


def read_metrics(step: int, metrics: Metrics) -> dict[str, Any]:
    """A step's metrics as numbers on the host, which waits until the step is done; raises `UserError` where one is not finite."""
    values = {name: value.item() for name, value in jax.device_get(metrics).items()}
    _check_finite(step, "loss", values["loss"])
    _check_finite(step, "gradient norm", values["grad_norm"])
    return values


def _check_finite(step: int, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"step {step}: the {name} is {value}; training stops, earlier checkpoints are kept. Lower optimizer.learning_rate or "
            "optimizer.clip_norm, lengthen optimizer.warmup_steps, or look at the data, in another --workdir"
        )


def _position(source: TokenSource, config: Config, step: int) -> dict[str, int]:
    return {"next_sample": step * config.data.batch_size, "stream_tokens": len(source.tokens)}


def _starting_state(
    model: LanguageModel, optimizer: Any, config: Config, source: TokenSource, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[TrainState, int]:
    """The newest checkpoint's state and step; else, at step 0, the parameters of `checkpoint.init_from` or fresh ones."""
    everywhere = replicated(mesh)
    if checkpoints.latest_step() is not None:
        state, position = checkpoints.restore(abstract_state(model, optimizer, everywhere))
        start = checkpoints.latest_step()
        expected = _position(source, config, start)
        if position != expected:
            raise UserError(
                f"the data have changed since step {start} was saved: then {position}, now {expected}; give another --workdir"
            )
        print(f"resumed from step {start}", flush=True)
        return state, start
    if config.checkpoint.init_from is not None:
        step, params = read_params(config.checkpoint.init_from, abstract_params(model, everywhere))
        print(f"parameters of step {step} of {config.checkpoint.init_from}", flush=True)
        return jax.jit(lambda params: start_from(params, optimizer), out_shardings=everywhere)(params), 0
    return jax.jit(lambda: init_state(model, optimizer, config.train.seed), out_shardings=everywhere)(), 0


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
