"""Matrix states with decays, read by queries. Start with recurrent.py: one token at a time."""

from pallas_kernels.linear_attention.api import linear_attention
from pallas_kernels.linear_attention.call import LinearAttentionState

__all__ = ["LinearAttentionState", "linear_attention"]
