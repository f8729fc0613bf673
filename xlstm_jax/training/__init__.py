"""Training: optimizer, state, step, checkpoints, metrics and the loop that puts them together."""

from xlstm_jax.training.callbacks import Callback, Run
from xlstm_jax.training.loop import train

__all__ = ["Callback", "Run", "train"]
