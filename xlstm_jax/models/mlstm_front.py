"""What stands between convolution and cell in the paper's mLSTM block, as one kernel where there
is one.

The mixer (`mixers/mlstm.py`) writes the same out in layers.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from xlstm_jax.models.layers import BlockDiagonalProjection, Fused
from xlstm_jax.models.mlstm_cell import GateWeights, MLSTMCellConfig
from xlstm_jax.parallel import num_shards
from xlstm_jax.parallel.kernels import mlstm_front
from xlstm_jax.typing import Array, Float

KERNELS = ("pallas_triton", "pallas_tpu")


def fused_front(
    settings: MLSTMCellConfig,
    c: Float[Array, "B T I"],
    u: Float[Array, "B T I"],
    maps: Sequence[BlockDiagonalProjection],
    gates: GateWeights,
) -> tuple[Fused, Fused, Fused] | None:
    """(q, k, v) with the gates of q, k and v; None where no kernel serves the call.

    None too for one token, whose time is that of launches and not of bytes; without a gate that the
    text decides; where channels are spread over devices, since summands of gates are elsewhere; and
    where the settings name the cell's backend: an XLA form for derivatives that kernels don't have,
    or one to compare with.
    """
    decided = [gate for gate in gates if gate[0] is not None]
    if not decided or u.shape[1] == 1 or settings.backend is not None or num_shards("inner") > 1:
        return None
    gate_kernel, gate_bias = (
        jnp.concatenate(parts, axis=-1) for parts in zip(*decided, strict=True)
    )
    weights = *(layer.kernel for layer in maps), gate_kernel, gate_bias
    try:
        front = mlstm_front(c, u, weights, backend=KERNELS)
    except NotImplementedError:
        return None
    q, k, v = (Fused(x, n, front.gates) for n, x in enumerate(front[:-1]))
    return q, k, v
