"""The pass over evaluation data: every sample once, sums added in float64 on the host."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from xlstm_jax.errors import UserError
from xlstm_jax.parallel import batch_sharding, filled_rows, put_batch
from xlstm_jax.tasks.task import Batch, HeldOut, Sums, Task

EvalStep = Callable[[Any, Batch], Sums]


def make_eval_step(task: Task, model: nn.Module) -> EvalStep:
    """The jitted step: parameters and batch to the sums, on the device."""
    return jax.jit(lambda params, batch: task.sums(model, {"params": params}, batch))


def evaluate(
    eval_step: EvalStep,
    params: Any,
    held_out: HeldOut,
    rows: int,
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[Batch], object] = lambda batch: None,
) -> dict[str, tuple[float, float]]:
    """The totals over all batches, of at least a row for each device.

    Sums are read one batch late, so that the device never waits.

    Args:
        rows: of a batch.
        on_batch: called with each batch when it was dispatched, for a progress line.

    Raises:
        UserError: not one sample counts.
    """
    rows = filled_rows(mesh, rows)
    to_devices = batch_sharding(mesh, rows, held_out.time)
    totals: dict[str, tuple[float, float]] = {}
    pending: Sums | None = None
    for batch in held_out.batches(rows):
        dispatched = eval_step(params, put_batch(batch, to_devices))
        on_batch(batch)
        if pending is not None:
            totals = _added(totals, pending)
        pending = dispatched
    if pending is not None:
        totals = _added(totals, pending)
    if not totals or not totals["loss"][1]:
        raise UserError("there is nothing to evaluate on: no sample counts; give more data")
    return totals | dict(held_out.constants)


def _added(totals: Mapping[str, tuple[float, float]], sums: Sums) -> dict[str, tuple[float, float]]:
    new = jax.device_get(sums)
    return {
        name: tuple(
            before + float(part)
            for before, part in zip(totals.get(name, (0.0, 0.0)), pair, strict=True)
        )
        for name, pair in new.items()
    }
