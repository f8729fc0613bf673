"""One optimizer step, as a pure function. It knows no model and no task by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from xlstm_jax.config import TrainConfig
from xlstm_jax.parallel import mesh_in_context
from xlstm_jax.runs.params import shardings_of
from xlstm_jax.tasks.task import Batch, Sums, Task
from xlstm_jax.training.guard import accepts, after_step
from xlstm_jax.training.state import TrainState, abstract_state

Metrics = dict[str, Array]  # scalars on the device
SumsOf = Callable[[Any, Batch, jax.Array], Sums]  # of parameters, a batch and a key


def split_batch(batch: Batch, parts: int) -> Batch:
    """[B ...] -> [parts B/parts ...]; part i has rows i, i + parts, ..., so that each part stays
    spread over all devices.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def totals_and_gradient(
    sums: SumsOf, params: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[Sums, Any]:
    """The sums over a batch, and the gradient of the loss's sum over its weight, in `parts`
    micro-batches.

    However unevenly the weights fall, the result is that of the un-split batch: the mean of the
    micro-batches' mean losses, each with its own weight. Sums are float32.
    """

    def mean_loss(params, part, part_key):
        found = sums(params, part, part_key)
        total, weight = found["loss"]
        return total / _divisor(weight), found

    gradient = jax.grad(mean_loss, has_aux=True)
    if parts == 1:
        part_gradient, found = gradient(params, batch, key)
        return found, part_gradient

    def add_part(carry, inputs):
        part_gradient, found = gradient(params, *inputs)
        weight = _divisor(found["loss"][1])
        weighted = jax.tree.map(lambda g: g * weight.astype(g.dtype), part_gradient)
        return jax.tree.map(jnp.add, carry, (weighted, found)), None

    inputs = (split_batch(batch, parts), jax.random.split(key, parts))
    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradients, found), _ = jax.lax.scan(add_part, zeros, inputs)
    weight = _divisor(found["loss"][1])
    return found, jax.tree.map(lambda g: g / weight.astype(g.dtype), gradients)


def _divisor(weight: Float[Array, ""]) -> Float[Array, ""]:
    """A batch in which nothing counts has the loss 0. Weights may be fractions: their sum may be
    below 1.
    """
    return jnp.where(weight > 0, weight, 1)


def make_train_step(
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step`, jitted: state and batch to the next state and its metrics. The given state's
    memory is reused (donated).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(task, model, optimizer, schedule, config, config.seed, state, batch)

    mesh = mesh_in_context()
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    # Where the results lie is fixed here and not left to the compiler: the next call takes the
    # state as this one left it, and another placement would compile it again.
    shardings = shardings_of(abstract_state(task, model, optimizer, config, mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def train_step(
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
    seed: int | Int[Array, ""],
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """The next state, and metrics that are scalars on the device: the means of the task's sums
    ("loss" among them), tokens (the weight of the loss), grad_norm (before clipping), learning_rate
    (of this step's update), update_norm (of that update, 0 if it was not applied), param_norm
    (after it), skipped (steps so far whose update was not applied) and skipped_in_a_row (how many
    of them are the last ones).

    Args:
        seed: of dropout, instead of `config.seed`; it and what the schedule gives may be traced.
    """

    def sums(params, batch, key):
        return task.sums(model, {"params": params}, batch, train=True, rngs={"dropout": key})

    key = jax.random.fold_in(jax.random.key(seed), state.step)
    totals, gradient = totals_and_gradient(
        sums, state.params, batch, key, config.accumulation_steps
    )
    means = {name: total / _divisor(weight) for name, (total, weight) in totals.items()}
    loss, grad_norm = means["loss"], optax.tree.norm(gradient)
    accepted = accepts(state.guard, loss, grad_norm, config.spike_deviations)

    def update() -> tuple[Any, Any, Array]:
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state, optax.tree.norm(updates)

    def keep() -> tuple[Any, Any, Array]:
        return state.params, state.opt_state, jnp.zeros_like(grad_norm)

    params, opt_state, update_norm = jax.lax.cond(accepted, update, keep)
    guard = after_step(state.guard, accepted, loss)
    metrics = means | {
        "tokens": totals["loss"][1],
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(params),
        "update_norm": update_norm,
        "learning_rate": schedule(state.guard.accepted + 1),
        "skipped": guard.skipped,
        "skipped_in_a_row": guard.in_a_row,
    }
    return TrainState(state.step + 1, params, opt_state, guard), metrics
