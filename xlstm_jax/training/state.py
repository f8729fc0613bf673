"""What a training step changes: the number of steps done, the parameters, the optimizer's moments,
the guard's window.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Int

from xlstm_jax.config import TrainConfig
from xlstm_jax.parallel import replicated
from xlstm_jax.runs.params import abstract_params, shardings_of, with_sharding
from xlstm_jax.tasks.task import Task
from xlstm_jax.training.guard import GuardState, init_guard


class TrainState(NamedTuple):
    """All that has to be kept to go on training; dropout keys and data follow from the step."""

    step: Int[Array, ""]  # batches seen
    params: Any  # float32, without flax's partitioning boxes
    opt_state: Any
    guard: GuardState


def init_params(task: Task, model: nn.Module, seed: int) -> Any:
    """Freshly initialised parameters; a pure function of the model and the seed."""
    return nn.meta.unbox(task.init(model, jax.random.key(seed)))["params"]


def init_state(
    task: Task, model: nn.Module, optimizer: optax.GradientTransformation, config: TrainConfig
) -> TrainState:
    """The state before step 1. Trace it under `jit`, or under `jax.eval_shape` for shapes alone."""
    return start_from(init_params(task, model, config.seed), optimizer, config)


def start_from(
    params: Any, optimizer: optax.GradientTransformation, config: TrainConfig
) -> TrainState:
    """The state before step 1 with given parameters."""
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(params), init_guard(config.spike_window)
    )


def abstract_state(
    task: Task,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    where: Mesh | Sharding | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state before step 1; nothing is computed. What the
    optimizer keeps of a parameter lies where the parameter does.
    """
    state = jax.eval_shape(lambda: init_state(task, model, optimizer, config))
    if not isinstance(where, Mesh):
        return with_sharding(state, where)
    shardings = shardings_of(abstract_params(lambda: task.init(model, jax.random.key(0)), where))
    by_path = dict(jax.tree_util.tree_flatten_with_path(shardings)[0])
    whole = replicated(where)

    def of_moment(path: tuple, _: Any) -> Sharding:
        # A moment's path ends with its parameter's. optax.tree.map_params would compute something,
        # which absent devices can't.
        names = tuple(entry for entry in path if isinstance(entry, jax.tree_util.DictKey))
        return by_path.get(names, whole)

    moments = jax.tree_util.tree_map_with_path(of_moment, state.opt_state)
    return with_sharding(
        state, TrainState(whole, shardings, moments, jax.tree.map(lambda _: whole, state.guard))
    )
