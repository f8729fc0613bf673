"""Where parameters, and all that has their shape, lie on a mesh: read off the logical axes that the
layers gave them.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xlstm_jax.errors import UserError
from xlstm_jax.parallel.axes import partition_spec

# What a device may hold above its share of the parameters: norms, biases, gates and convolutions
# lie whole, and so may a small model.
SPREAD_TOLERANCE, SMALL = 0.05, 2**26  # of all parameters; bytes


def parameter_shardings(variables: Any, mesh: Mesh) -> Any:
    """A tree of shardings from one of parameters or their shapes in flax's boxes, as `model.init`
    returns it; what has no box is whole.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.meta.AxisMetadata):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, partition_spec(leaf.names, leaf.value.shape, mesh))

    return jax.tree.map(
        sharding, variables, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    )


def check_spread(parameters: Any, mesh: Mesh) -> None:
    """Asserts that parameters are spread over the axes fsdp and tensor, all but a small part.

    Parameters that every device holds whole cost nothing but memory and time, so that nobody
    notices.

    Raises:
        UserError: a device holds more than its share and the tolerance above; names the largest
            parameter that is not spread.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    devices = mesh.shape["fsdp"] * mesh.shape["tensor"]
    total = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    own = [
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for _, leaf in leaves
    ]
    if sum(own) <= total / devices + max(SPREAD_TOLERANCE * total, SMALL):
        return
    above = [
        held - leaf.size * leaf.dtype.itemsize / devices
        for held, (_, leaf) in zip(own, leaves, strict=True)
    ]
    path, leaf = leaves[above.index(max(above))]
    raise UserError(
        f"every device holds {sum(own) / total:.0%} of the parameters; mesh.fsdp "
        f"{mesh.shape['fsdp']} and mesh.tensor "
        f"{mesh.shape['tensor']} should leave it {1 / devices:.0%}. The largest that is not spread "
        f"is {jax.tree_util.keystr(path)} "
        f"{leaf.shape}: use sizes that divide its dimensions"
    )
