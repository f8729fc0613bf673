"""Small models of both block families with large weights: their choices depend on all that was
read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from xlstm_jax.models import LanguageModel, ModelConfig, build_model

VOCABULARY = 24
FAMILIES = {
    "paper": ModelConfig(
        vocab_size=VOCABULARY,
        dim=16,
        num_blocks=2,
        blocks="mlstm,slstm+mlp",
        mixers={
            "mlstm": {"num_heads": 2},
            "slstm": {"num_heads": 2, "recurrent_init": "uniform"},
        },
    ),
    "7b": ModelConfig(
        vocab_size=VOCABULARY,
        dim=16,
        num_blocks=2,
        blocks="mlstm_7b+mlp",
        norm="rms",
        logit_soft_cap=30.0,
        mixers={
            "mlstm_7b": {
                "num_heads": 2,
                "input_gate_bias": 0.0,
                "input_gate_bias_std": 0.1,
                "norm_eps": 1e-5,
            },
            "mlp": {"activation": "silu", "whole_first": True},
        },
    ),
}


def initial_params(model: LanguageModel, seed: int) -> Any:
    """Freshly initialised parameters."""
    init = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32)))
    return nn.meta.unbox(init())["params"]


@functools.cache
def build(config: ModelConfig):
    """(model, parameters) with large weights."""
    model = build_model(config)
    params = initial_params(model, seed=3)
    return model, jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)


@pytest.fixture(params=FAMILIES)
def model_and_params(request):
    return build(FAMILIES[request.param])


@pytest.fixture
def paper_model():
    return build(FAMILIES["paper"])
