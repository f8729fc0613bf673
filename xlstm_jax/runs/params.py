"""Names, shapes and places of parameters before there are any."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, Sharding

from xlstm_jax.parallel import parameter_shardings


def abstract_params(init: Callable[[], Any], where: Mesh | Sharding | None = None) -> Any:
    """Names, shapes, dtypes and shardings of the parameters that `init` makes; nothing is computed.
    On a mesh each lies as its logical axes say.
    """
    variables = jax.eval_shape(init)
    shapes = nn.meta.unbox(variables)["params"]
    on_mesh = isinstance(where, Mesh)
    return with_sharding(
        shapes, parameter_shardings(variables, where)["params"] if on_mesh else where
    )


def language_model_params(model: nn.Module, where: Mesh | Sharding | None = None) -> Any:
    """`abstract_params` of a model that takes tokens."""
    return abstract_params(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)), where
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
