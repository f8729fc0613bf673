"""How much of each block is kept for the backward pass: as much as the devices' memory holds
(`model.remat=auto`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pallas_kernels.chips import chip_of
from xlstm_jax.config import Config, task_of
from xlstm_jax.models.remat import AUTO, INPUTS, RICHEST_FIRST
from xlstm_jax.training.compiling import compiled_for, needed_bytes, used_bytes
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state

# Of a device's memory, that a step may need. The rest is for the next batch, for the metrics of the
# last step, for gaps between buffers, and on a GPU for what CUDA and NCCL take.
SHARE = 0.9


class Choice(NamedTuple):
    """A value of `model.remat`.

    Attributes:
        needed: bytes that the step needs on each device; None where it was not compiled.
        room: bytes that it may need; None where that is not known.
        compiled: the step, where it was compiled and fits.
    """

    remat: str
    needed: float | None
    room: float | None
    compiled: Any = None

    def line(self) -> str:
        """What was chosen and why, for the log."""
        if self.room is None:
            why = "the memory of these devices is not known"
        elif self.needed is None:
            why = f"nothing richer fits into {self.room / 1e9:.1f} GB of a device"
        else:
            why = f"needs {self.needed / 1e9:.1f} of {self.room / 1e9:.1f} GB of a device"
        return f"model.remat auto: {self.remat!r}, {why}"


def with_choice(config: Config, remat: str) -> Config:
    """The configuration with this `model.remat`."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))


def choose(config: Config, mesh: Mesh, where: str, say: Callable[[str], None]) -> Choice:
    """What `model.remat` "auto" stands for on these devices.

    Where their memory is not known, as on CPUs, that is `INPUTS` at once. Else the step is compiled
    with the richest setting that may fit, and with poorer ones until one fits. (What is compiled
    for devices that are there is found in the compilation cache when the step is called.)
    """
    room = room_of(mesh)
    if room is None:
        return Choice(INPUTS, None, None)
    found = {}

    def needed(remat: str) -> float:
        say(f"trying model.remat {remat!r}")
        try:
            compiled = compiled_for(with_choice(config, remat), mesh, where, say)
        except jax.errors.JaxRuntimeError as error:
            if (size := needed_bytes(str(error))) is None:
                raise
            return size
        found[remat] = compiled
        return used_bytes(compiled)

    remat, size = richest_that_fits(
        RICHEST_FIRST, functools.partial(kept_bytes, config, mesh), needed, room
    )
    return Choice(remat, size, room, None if size is None else found[remat])


def richest_that_fits(
    richest_first: Sequence[str],
    kept: Callable[[str], float],
    needed: Callable[[str], float],
    room: float,
) -> tuple[str, float | None]:
    """The first setting with which a step needs no more than `room` bytes, and what it needs; the
    last one without being asked, as nothing is poorer.

    Args:
        kept: bytes that are certainly there at once, found without compiling. Settings that keep
            as much as one tried before are the same program, and those that keep as little as the
            last one are no richer.
        needed: bytes of the compiled step.
    """
    *richer, last = richest_first
    tried = {kept(last)}
    for remat in richer:
        least = kept(remat)
        if least in tried or least > room:
            continue
        tried.add(least)
        size = needed(remat)
        if size <= room:
            return remat, size
    return last, None


def room_of(mesh: Mesh) -> float | None:
    """Bytes that a step may need on a device of the mesh; None where its memory is not known.

    What the device itself says it has for programs counts where it is less than the data sheet
    has: there is an A100 with 40 GB, and XLA may have been given a part of the memory alone.
    """
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is None:
        return None
    memory = chip.memory
    if device.process_index == jax.process_index() and device in jax.local_devices():
        memory = min(memory, (device.memory_stats() or {}).get("bytes_limit", memory))
    return SHARE * memory


def kept_bytes(config: Config, mesh: Mesh, remat: str) -> float:
    """Bytes on each device of the state and of what the blocks keep for the backward pass besides
    their inputs, as traced; nothing is compiled.
    """
    more = _residual_bytes(config, mesh, remat) - _residual_bytes(config, mesh, INPUTS)
    return _state_bytes(config, mesh) + more / mesh.size


@functools.lru_cache(maxsize=8)
def _residual_bytes(config: Config, mesh: Mesh, remat: str) -> int:
    """Of all devices, in one of the step's micro-batches."""
    task = task_of(with_choice(config, remat))
    model = task.model(stacked=True)
    shapes = task.shapes(config.data.batch_size // config.train.accumulation_steps)

    def residuals(variables: Any, batch: Any) -> list[Any]:
        def loss(params: Any) -> Any:
            rngs = {"dropout": jax.random.key(0)}
            return task.sums(model, {"params": params}, batch, train=True, rngs=rngs)["loss"][0]

        return jax.tree.leaves(jax.vjp(loss, variables)[1])

    with jax.set_mesh(mesh):
        state = _state(config, mesh, remat)
        kept = jax.eval_shape(residuals, state.params, shapes)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


def _state(config: Config, mesh: Mesh, remat: str) -> Any:
    config = with_choice(config, remat)
    task = task_of(config)
    optimizer = make_optimizer(
        config.optimizer, make_schedule(config.optimizer, config.train.steps)
    )
    return abstract_state(task, task.model(stacked=True), optimizer, config.train, mesh)


def _state_bytes(config: Config, mesh: Mesh) -> int:
    with jax.set_mesh(mesh):
        leaves = jax.tree.leaves(_state(config, mesh, INPUTS))
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def fixed(
    config: Config,
    mesh: Mesh,
    before: Config | None,
    say: Callable[[str], None],
) -> Config:
    """The configuration with a choice in place of "auto": that of the run so far, or for these
    devices.

    Args:
        before: the configuration of a run that goes on.
    """
    if before is not None and before.model.remat != AUTO:
        say(f"model.remat auto: {before.model.remat!r}, as config.json says")
        return with_choice(config, before.model.remat)
    device = mesh.devices.flat[0].device_kind
    choice = choose(config, mesh, f"{mesh.size} x {device}", say)
    say(choice.line())
    return with_choice(config, choice.remat)
