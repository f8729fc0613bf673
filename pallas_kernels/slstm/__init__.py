"""The sLSTM cell. recurrent.py holds the paper's equations and their gradient."""

from pallas_kernels.slstm.api import slstm

__all__ = ["slstm"]
