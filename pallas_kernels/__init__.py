"""The xLSTM cells as pure functions: `mlstm`, `slstm` and their states. Depends on jax and jaxtyping alone."""

from pallas_kernels.mlstm import mlstm
from pallas_kernels.slstm import slstm
from pallas_kernels.typing import MLSTMState, SLSTMState

__all__ = ["MLSTMState", "SLSTMState", "mlstm", "slstm"]
