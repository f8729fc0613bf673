"""Causal self-attention. Start with reference.py: the softmax over all earlier
tokens, written out.
"""

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.rotary import rotary
from pallas_kernels.attention.state import AttentionState, cache_room

__all__ = ["AttentionState", "attention", "cache_room", "rotary"]
