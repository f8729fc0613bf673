"""The training step of a configuration, compiled before there is a state or a batch."""

import re
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from xlstm_jax.config import Config, task_of
from xlstm_jax.parallel import batch_sharding, of_rank
from xlstm_jax.parallel.xla_flags import TRAINING, compiler_options
from xlstm_jax.progress import doing
from xlstm_jax.runs.params import with_sharding
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state
from xlstm_jax.training.step import make_train_step


def compiled_for(
    config: Config, mesh: Mesh, where: str, say: Callable[[str], None]
) -> jax.stages.Compiled:
    """The training step, compiled for a mesh of devices that are there or not.

    Args:
        where: names the devices.
        say: is told what takes long.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses it; see `needed_bytes`.
    """
    rows, length = config.data.batch_size, config.data.context_length
    tokens = batch_sharding(mesh, rows, length, accumulation_steps=config.train.accumulation_steps)
    task = task_of(config)
    with jax.set_mesh(mesh):
        model = task.model(stacked=True)
        schedule = make_schedule(config.optimizer, config.train.steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        state = abstract_state(task, model, optimizer, config.train, mesh)
        shapes = task.shapes(rows)
        batch = with_sharding(
            shapes, jax.tree.map(lambda leaf: of_rank(tokens, len(leaf.shape)), shapes)
        )
        with doing("tracing the training step", say):
            step = make_train_step(task, model, optimizer, schedule, config.train)
            lowered = step.lower(state, batch)
        with doing(f"compiling it for {where}, which may take many minutes", say):
            return lowered.compile(_options(mesh.devices.flat[0]))


def _options(device: jax.Device) -> dict[str, str | bool] | None:
    """For an absent GPU the flags of a process that trains there. One that is here has them, or its
    user does not want them; the step that is called is to be found in the compilation cache.
    """
    is_absent_gpu = device.platform in ("gpu", "cuda") and device not in jax.devices()
    return compiler_options(TRAINING) if is_absent_gpu else None


def used_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory that a program needs on each device: the compiler's peak, or where it says none,
    arguments and temporaries.
    """
    memory = compiled.memory_analysis()
    return memory.peak_memory_in_bytes or (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    )


def needed_bytes(message: str) -> float | None:
    """What the TPU compiler says a program needs that does not fit; None for any other error.

    It says "Used 30.52G of 15.75G hbm" or "required for HLO temporaries (540.97G) exceeds available
    HBM (15.75G)".
    """
    match = re.search(
        r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds available HBM",
        message,
    )
    if not match:
        return None
    number, unit = match.group(1, 2) if match[1] else match.group(3, 4)
    return float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
