"""The xLSTM cells as pure functions: `mlstm`, `slstm` and their states. Depends on jax and
jaxtyping alone.
"""

from pallas_kernels.cpu_compiler import avoid_wrong_fusions
from pallas_kernels.mlstm import mlstm
from pallas_kernels.slstm import slstm
from pallas_kernels.typing import MLSTMState, SLSTMState

avoid_wrong_fusions()

__all__ = ["MLSTMState", "SLSTMState", "mlstm", "slstm"]
