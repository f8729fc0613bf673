"""xLSTM blocks, their stack and the language model, as Flax linen modules with explicit states."""

from xlstm_jax.models.backbone import Backbone, BackboneState
from xlstm_jax.models.language_model import LanguageModel, build_model

__all__ = ["Backbone", "BackboneState", "LanguageModel", "build_model"]
