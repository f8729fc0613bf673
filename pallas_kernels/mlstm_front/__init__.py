"""What stands before the cell in the paper's mLSTM block, behind the convolution: q, k, v, gates."""

from pallas_kernels.mlstm_front.api import mlstm_front
from pallas_kernels.mlstm_front.call import Front

__all__ = ["Front", "mlstm_front"]
