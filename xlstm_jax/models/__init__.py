"""Mixers, their stack and the language model, as Flax linen modules with explicit states."""

from xlstm_jax.models.backbone import Backbone, BackboneState
from xlstm_jax.models.classifier import Classifier
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.models.language_model import LanguageModel, build_model
from xlstm_jax.models.mixer import Depth, Mixer, Segments
from xlstm_jax.models.mixers import register
from xlstm_jax.models.sequence_model import SequenceModel

__all__ = [
    "Backbone",
    "BackboneState",
    "Classifier",
    "Depth",
    "LanguageModel",
    "Mixer",
    "ModelConfig",
    "Segments",
    "SequenceModel",
    "build_model",
    "register",
]
