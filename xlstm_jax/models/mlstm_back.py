"""What stands behind the cell in an mLSTM block, as one kernel where there is one.

The mixers (`mixers/mlstm.py`, `mixers/mlstm_7b.py`) write the same out in layers.
"""

from pallas_kernels.mlstm_back.call import Inner
from xlstm_jax.models.layers import HeadNorm
from xlstm_jax.models.mlstm_cell import MLSTMCellConfig
from xlstm_jax.parallel.kernels import mlstm_back
from xlstm_jax.typing import Array, Float, HeadActivations

KERNELS = ("pallas_triton", "pallas_tpu")


def fused_back(
    settings: MLSTMCellConfig,
    h: HeadActivations,
    norm: HeadNorm,
    gate: Inner,
    activation: str,
    c: Inner | None = None,
    skip: Float[Array, " I"] | None = None,
) -> Inner | None:
    """(norm(h) + skip * c) * activation(gate); None where no kernel serves the call.

    None too for one token, of which XLA joins norm and gate with the cell's quotient, and where the
    settings name the cell's backend: an XLA form for derivatives that kernels don't have, or one to
    compare with.
    """
    if settings.backend is not None or norm.use_bias or h.shape[1] == 1:
        return None
    try:
        return mlstm_back(
            h, norm.scale(h), gate, c, skip,
            eps=norm.eps, activation=activation, center=norm.center, backend=KERNELS,
        )  # fmt: skip
    except NotImplementedError:
        return None
