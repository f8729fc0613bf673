"""The mLSTM cell. Start with recurrent.py: the paper's equations, one token at a time."""

from pallas_kernels.mlstm.api import mlstm

__all__ = ["mlstm"]
