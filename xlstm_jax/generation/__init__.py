"""Text from a trained model: prompts are read in parallel, then one recurrent step per token, on
the device.
"""

from xlstm_jax.generation.decoding import decode, generate
from xlstm_jax.generation.generator import Generator, Written
from xlstm_jax.generation.sampling import GREEDY, Sampling
from xlstm_jax.generation.session import Session, read, take

__all__ = [
    "GREEDY",
    "Generator",
    "Sampling",
    "Session",
    "Written",
    "decode",
    "generate",
    "read",
    "take",
]
