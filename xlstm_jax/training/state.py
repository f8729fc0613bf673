"""What a training step changes: the number of steps done, the parameters, the optimizer's moments, the guard's window."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from xlstm_jax.config import TrainConfig
from xlstm_jax.training.guard import GuardState, init_guard


class TrainState(NamedTuple):
    """Everything that has to be kept to go on training; dropout keys and data follow from the step."""

    step: Int[Array, ""]  # batches seen
    params: Any  # float32, without flax's partitioning boxes
    opt_state: Any
    guard: GuardState


def init_params(model: nn.Module, seed: int) -> Any:
    """Freshly initialised parameters; a pure function of the model and the seed."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    return nn.meta.unbox(variables)["params"]


def init_state(model: nn.Module, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    """The state before step 1. Trace it under `jit`, or under `jax.eval_shape` for shapes alone."""
    return start_from(init_params(model, config.seed), optimizer, config)


def start_from(params: Any, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    """The state before step 1 with given parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), init_guard(config.spike_window))


def abstract_params(model: nn.Module, sharding: jax.sharding.Sharding | None = None) -> Any:
    """Names, shapes, dtypes and shardings of the parameters; nothing is computed."""
    return with_sharding(jax.eval_shape(lambda: init_params(model, seed=0)), sharding)


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: TrainConfig, sharding: jax.sharding.Sharding
) -> TrainState:
    """The same for the whole state."""
    return with_sharding(jax.eval_shape(lambda: init_state(model, optimizer, config)), sharding)


def with_sharding(shapes: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """A tree of shapes that also says where the arrays are to lie."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
