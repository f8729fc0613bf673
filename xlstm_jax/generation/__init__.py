"""Text from a trained model: prefill in parallel, then one recurrent step per token."""

from xlstm_jax.generation.sampling import generate

__all__ = ["generate"]
