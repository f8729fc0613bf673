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
from xlstm_jax.parallel import parameter_shardings, replicated
from xlstm_jax.training.guard import GuardState, init_guard


class TrainState(NamedTuple):
    """All that has to be kept to go on training; dropout keys and data follow from the step."""

    step: Int[Array, ""]  # batches seen
    params: Any  # float32, without flax's partitioning boxes
    opt_state: Any
    guard: GuardState


def init_params(model: nn.Module, seed: int) -> Any:
    """Freshly initialised parameters; a pure function of the model and the seed."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    return nn.meta.unbox(variables)["params"]


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: TrainConfig
) -> TrainState:
    """The state before step 1. Trace it under `jit`, or under `jax.eval_shape` for shapes alone."""
    return start_from(init_params(model, config.seed), optimizer, config)


def start_from(
    params: Any, optimizer: optax.GradientTransformation, config: TrainConfig
) -> TrainState:
    """The state before step 1 with given parameters."""
    return TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(params), init_guard(config.spike_window)
    )


def abstract_params(model: nn.Module, where: Mesh | Sharding | None = None) -> Any:
    """Names, shapes, dtypes and shardings of the parameters; nothing is computed. On a mesh each
    lies as its logical axes say.
    """
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    shapes = nn.meta.unbox(variables)["params"]
    return with_sharding(
        shapes,
        parameter_shardings(variables, where)["params"] if isinstance(where, Mesh) else where,
    )


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    where: Mesh | Sharding | None = None,
) -> TrainState:
    """The same for the whole state: what the optimizer keeps of a parameter lies where the
    parameter does.
    """
    state = jax.eval_shape(lambda: init_state(model, optimizer, config))
    if not isinstance(where, Mesh):
        return with_sharding(state, where)
    shardings = shardings_of(abstract_params(model, where))
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


def shardings_of(abstract: Any) -> Any:
    """The shardings alone, as `jax.jit` takes them."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes that also says where the arrays are to lie: shardings is a tree too, or one
    for all.
    """
    if shardings is None or isinstance(shardings, Sharding):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings), shapes
        )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
