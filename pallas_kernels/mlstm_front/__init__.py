"""What stands between convolution and cell in the paper's mLSTM block: q, k, v and gates."""

from pallas_kernels.mlstm_front.api import mlstm_front
from pallas_kernels.mlstm_front.call import Front

__all__ = ["Front", "mlstm_front"]
