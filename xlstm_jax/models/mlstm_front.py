"""What stands before the cell in the paper's mLSTM block, as one kernel where there is one.

The mixer (`mixers/mlstm.py`) writes the same out in layers.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from xlstm_jax.models.layers import BlockDiagonalProjection, Fused
from xlstm_jax.models.mixer import Segments
from xlstm_jax.models.mlstm_cell import GateWeights, MLSTMCellConfig
from xlstm_jax.parallel import num_shards
from xlstm_jax.parallel.kernels import mlstm_front
from xlstm_jax.typing import Array, Float

KERNEL = "pallas_triton"


def fused_front(
    settings: MLSTMCellConfig,
    u: Float[Array, "B T I"],
    window: Float[Array, "B W-1 I"] | None,
    segments: Segments,
    conv: tuple[Float[Array, "W I"], Float[Array, " I"]] | None,
    maps: Sequence[BlockDiagonalProjection],
    gates: GateWeights,
) -> tuple[Array, Fused, Fused, Fused, Array] | None:
    """(c, q, k, v, window after the last token) with the gates of q, k and v; None where no kernel
    serves the call.

    None too for one token, whose time is that of launches and not of bytes; without a convolution
    or a gate that the text decides; where time or channels are spread over devices, since
    neighbours and summands of gates are elsewhere; and where the settings name the cell's backend:
    an XLA form for derivatives that kernels don't have, or one to compare with.
    """
    decided = [gate for gate in gates if gate[0] is not None]
    spread = num_shards("time", "inner") > 1
    if conv is None or not decided or u.shape[1] == 1 or settings.backend is not None or spread:
        return None
    gate_kernel, gate_bias = (
        jnp.concatenate(parts, axis=-1) for parts in zip(*decided, strict=True)
    )
    weights = *conv, *(layer.kernel for layer in maps), gate_kernel, gate_bias
    try:
        front, after = mlstm_front(
            u, weights, window,
            segment_ids=segments.ids, previous_segment=segments.previous, backend=KERNEL,
        )  # fmt: skip
    except NotImplementedError:
        return None
    q, k, v = (Fused(x, n, front.gates) for n, x in enumerate((front.q, front.k, front.v)))
    return front.c, q, k, v, after
