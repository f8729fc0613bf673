"""What stands behind the cell in an mLSTM block: the heads' norm, the skip, the output gate."""

from pallas_kernels.mlstm_back.api import mlstm_back

__all__ = ["mlstm_back"]
