"""What a training step of a configuration costs on the devices that are here: tokens/s, MFU,
memory, and what is around the step.

    python -m benchmarks.train_step --config=configs/xlstm_125m.py:1_0-15b [--steps=20]
    python -m benchmarks.train_step --config=... --around   # loop, checkpoint, resumption
    python -m benchmarks.train_step --scaling               # weak scaling over 8 CPU devices

The step is checked first: loss and gradient norm of one batch with the chosen kernels against the
XLA forms. Results go to benchmarks/results/train_step_<name>_<device>.json.
"""

import dataclasses
import json
import math
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.device_time import by_name, profiled
from benchmarks.provenance import provenance
from xlstm_jax import command_line, config_flags
from xlstm_jax.analysis.flops import peak_flops, training_flops_per_token
from xlstm_jax.config import Config, OptimizerConfig, load, task_of
from xlstm_jax.data.loader import Batch
from xlstm_jax.models.remat import AUTO
from xlstm_jax.parallel import batch_sharding, make_mesh, put_batch
from xlstm_jax.runs.params import shardings_of
from xlstm_jax.tasks.task import Task
from xlstm_jax.training import loop
from xlstm_jax.training.memory import fixed
from xlstm_jax.training.metrics import read_records
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state, init_state
from xlstm_jax.training.step import make_train_step

RESULTS = pathlib.Path(__file__).parent / "results"
FLAGS = {
    "steps": "steps to time, by default 20",
    "around": "yes: measure the loop, a checkpoint and a resumption too",
    "scaling": "yes: weak scaling over 8 CPU devices",
}
TINY = "configs/quickstart.py"
PROFILED = 3  # steps whose kernels are named
# the steps that are measured on one GPU: configuration, overrides; `model.remat` is what "auto"
# chooses on an H100, said here so that no time goes into finding it
STEPS = {
    "125m [1:0]": (
        "configs/xlstm_125m.py:1_0-15b",
        {
            "data.batch_size": 32,
            "data.context_length": 2048,
            "model.remat": "cell+qkv+conv+operands+dots",
        },
    ),
    "125m [7:1]": (
        "configs/xlstm_125m.py:7_1-15b",
        {
            "data.batch_size": 32,
            "data.context_length": 2048,
            "model.remat": "cell+qkv+conv+operands+dots",
        },
    ),
    "1.3b [1:0]": (
        "configs/xlstm_1.3b.py:1_0-15b",
        {
            "data.batch_size": 16,
            "data.context_length": 2048,
            "train.accumulation_steps": 4,
            "model.remat": "cell+qkv+conv+operands+dots",
        },
    ),
    "1.42b as 7b": (
        "configs/xlstm_7b.py",
        {
            "model.dim": 2048,
            "model.num_blocks": 24,
            "data.batch_size": 8,
            "data.context_length": 8192,
            "train.accumulation_steps": 2,
            "model.remat": "cell+qkv+conv+dots",
        },
    ),
}
# the backend of each mixer that has no kernel of its own
XLA_FORMS = {
    "mlstm": "chunkwise",
    "mlstm_7b": "chunkwise",
    "slstm": "recurrent",
    "attention": "blockwise",
}


def random_batch(config: Config, task: Task, seed: int = 0) -> Any:
    """Tokens drawn at random, in one document each; of a task without text its own first batch."""
    if not task.writes_text:
        return task.batch(seed, 0, range(config.data.batch_size))
    shape = (config.data.batch_size, config.data.context_length + 1)
    tokens = (
        np.random.default_rng(seed).integers(0, config.model.vocab_size, shape).astype(np.int32)
    )
    return Batch(tokens[:, :-1], tokens[:, 1:], np.zeros(tokens[:, 1:].shape, np.int32))


class Programs(NamedTuple):
    """The two programs of a configuration, not compiled yet, and what the step is called with."""

    init: Any
    step: Any
    state: Any  # shapes with shardings
    batch: Any  # on the host
    to_devices: jax.sharding.NamedSharding

    def batch_on_devices(self) -> Any:
        """The batch's shapes with its sharding."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.to_devices), self.batch
        )


class Start(NamedTuple):
    """A step, (state, batch) -> (state, metrics), and what it is called with first."""

    step: Any
    state: Any
    batch: Any  # on the devices


def programs(config: Config, mesh: jax.sharding.Mesh) -> Programs:
    """Of the training step; the mesh must be in context."""
    schedule = make_schedule(config.optimizer, config.train.steps)
    task, optimizer = task_of(config), make_optimizer(config.optimizer, schedule)
    model = task.model(stacked=True)
    state = abstract_state(task, model, optimizer, config.train, mesh)
    init = jax.jit(
        lambda: init_state(task, model, optimizer, config.train), out_shardings=shardings_of(state)
    )
    step = make_train_step(task, model, optimizer, schedule, config.train)
    to_devices = batch_sharding(mesh, config.data.batch_size, config.data.context_length)
    return Programs(init, step, state, random_batch(config, task), to_devices)


def prepared(config: Config, mesh: jax.sharding.Mesh) -> Start:
    """Compiled, and initialised; the mesh must be in context."""
    init, step, batch, to_devices = compiled(config, mesh)
    return Start(step, init(), put_batch(batch, to_devices))


def compiled(config: Config, mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any, Any]:
    """(initialisation, step, batch on the host, its sharding); nothing is run, so that a process
    that comes later finds both in the compilation cache.
    """
    found = programs(config, mesh)
    step = found.step.lower(found.state, found.batch_on_devices()).compile()
    return found.init.lower().compile(), step, found.batch, found.to_devices


def plain(config: Config) -> Config:
    """The same with the XLA forms in the place of kernels."""
    mixers = {
        name: dataclasses.replace(section, backend=XLA_FORMS[name])
        if name in XLA_FORMS
        else section
        for name, section in config.model.mixers.items()
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mixers=mixers))


def losses(
    config: Config, mesh: jax.sharding.Mesh, steps: int, start: Start | None = None
) -> list[float]:
    """The loss of every step of a training on the configuration's own data; with the step and the
    state of `start`, or with its own.
    """
    step, state, _ = start or prepared(config, mesh)
    rows = config.data.batch_size
    to_devices = batch_sharding(mesh, rows, config.data.context_length)
    batches, found = task_of(config).batches(0, range(rows)), []
    for _ in range(steps):
        state, metrics = step(state, put_batch(next(batches), to_devices))
        found.append(metrics["loss"])
    return [float(loss) for loss in found]


def check(config: Config, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Relative differences of loss and gradient norm from those of the XLA forms; asserts that they
    are bfloat16's at most.
    """
    numbers = []
    for form in (config, plain(config)):
        step, state, batch = prepared(form, mesh)
        metrics = step(state, batch)[1]
        numbers.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    (loss, norm), (plain_loss, plain_norm) = numbers
    differences = {"loss": abs(loss / plain_loss - 1), "grad_norm": abs(norm / plain_norm - 1)}
    assert math.isfinite(loss) and differences["loss"] < 1e-3 and differences["grad_norm"] < 2e-2, (
        differences
    )
    return differences


def step_time(
    config: Config, mesh: jax.sharding.Mesh, steps: int, start: Start | None = None
) -> dict[str, Any]:
    """Seconds per step (median of five stretches), tokens/s, MFU, compile time, peak memory, and on
    accelerators the time by the names of kernels; of `start`, or of the configuration's own step.
    """
    started = time.perf_counter()
    step, state, batch = start or prepared(config, mesh)
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - started
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    stretches = []
    for _ in range(5):
        count, started = max(1, steps // 5), time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        stretches.append((time.perf_counter() - started) / count)
    seconds, device = statistics.median(stretches), mesh.devices.flat[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    kernels = None
    if device.platform != "cpu":
        with profiled() as events:
            for _ in range(PROFILED):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
        kernels = by_name(events, PROFILED)
    tokens = config.data.batch_size * config.data.context_length
    peak = peak_flops(device.device_kind)
    flops = training_flops_per_token(task_of(config).model(), config.data.context_length)
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": tokens / seconds * flops / (peak * mesh.size) if peak else None,
        "first_step_seconds": compiled,
        "peak_bytes": memory,
        "loss": float(metrics["loss"]),
        "kernels": kernels,
    }


def around(config: Config, mesh: jax.sharding.Mesh, steps: int) -> dict[str, float]:
    """What is around the step, in the real loop with a line per step: its share of the time, a
    checkpoint's cost, seconds to resume.

    The run has a checkpoint after `steps`, `2 * steps` and at its end; the last is removed and the
    same run goes on for one step.
    """
    bare = step_time(config, mesh, steps)["seconds_per_step"]
    run = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=2 * steps + 1),
        optimizer=dataclasses.replace(
            config.optimizer,
            schedule="constant",
            warmup_steps=0,
            cooldown_steps=0,
            decay_steps=None,
            final_fraction=OptimizerConfig.final_fraction,
        ),
        eval=dataclasses.replace(
            config.eval, every=10**9, sample_tokens=0, max_tokens=config.data.context_length
        ),
        log=dataclasses.replace(config.log, every=1),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps, keep_latest=3),
    )
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        loop.train(run, workdir)
        first = training_events(workdir)
        shutil.rmtree(workdir / "checkpoints" / str(2 * steps + 1))
        started = time.perf_counter()
        loop.train(run, workdir)
        resumed = time.perf_counter() - started
    in_steps = np.diff([event["train_seconds"] + event["data_seconds"] for event in first])
    undisturbed = float(np.median(in_steps[2 : steps - 1]))
    saving = in_steps[steps : 2 * steps - 1]  # while files are being written
    return {
        "seconds_per_step_in_the_loop": undisturbed,
        "share_outside_the_compiled_step": undisturbed / bare - 1,
        "checkpoint_stops_training_for_seconds": first[steps]["checkpoint_seconds"]
        - first[steps - 2]["checkpoint_seconds"],
        "checkpoint_slows_later_steps_by_seconds": float(np.sum(saving - undisturbed)),
        "resume_and_one_step_seconds": resumed,
    }


def training_events(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a run's training steps."""
    return [event for event in read_records(workdir / "metrics.jsonl") if event["split"] == "train"]


def weak_scaling() -> dict[str, Any]:
    """Tokens/s of n CPU devices with n shares of work, against one device with all of it: what the
    distribution itself costs.

    The devices share the machine's cores, so that the same work takes the same time where nothing
    is lost.
    """
    results: dict[str, Any] = {}
    for axis in ("data", "fsdp"):
        for devices in (1, 2, 4, 8):
            mesh_keys = {"data": 1, "fsdp": 1} | {axis: devices}
            config = load(
                TINY,
                {"data.batch_size": 16, "model.dtype": "float32"}
                | {f"mesh.{k}": v for k, v in mesh_keys.items()},
            )
            mesh = make_mesh(config.mesh)
            with jax.set_mesh(mesh):
                results[f"{axis}={devices}"] = step_time(config, mesh, 20)["tokens_per_second"]
        for devices in (2, 4, 8):
            results[f"{axis}={devices} efficiency"] = (
                results[f"{axis}={devices}"] / results[f"{axis}=1"]
            )
    return results


def main(argv: list[str]) -> None:
    """Runs what the flags ask for, prints it and writes it."""
    flags = command_line.parse(argv, __doc__, FLAGS, config_flags.without_config)
    if flags.scaling:
        jax.config.update("jax_num_cpu_devices", 8)
        name, result = "scaling", weak_scaling()
    else:
        config = config_flags.read(argv)
        name = config_flags.name(argv)
        steps, mesh = command_line.number(flags, "steps") or 20, make_mesh(config.mesh)
        if config.model.remat == AUTO:
            config = fixed(config, mesh, None, print)
        with jax.set_mesh(mesh):
            result = {"differences_from_xla": check(config, mesh), **step_time(config, mesh, steps)}
        if flags.around:
            result |= around(config, mesh, steps)
        result["config"] = json.loads(config.to_json())
    result |= provenance()
    for key, value in result.items():
        if key not in ("config", "kernels"):
            print(f"{key}: {value}")
    file = RESULTS / f"train_step_{name}_{result['device'].lower().replace(' ', '_')}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(file)


if __name__ == "__main__":
    main(sys.argv)
