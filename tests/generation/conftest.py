"""Small models of both block families with large weights: their choices depend on all that was
read.
"""

import functools

import jax
import pytest

from xlstm_jax.config import ModelConfig
from xlstm_jax.models import build_model
from xlstm_jax.training.state import init_params

VOCABULARY = 24
FAMILIES = {
    "paper": ModelConfig(
        vocab_size=VOCABULARY,
        dim=16,
        num_blocks=2,
        num_heads=2,
        slstm_positions=(1,),
        slstm_recurrent_init="uniform",
    ),
    "7b": ModelConfig(
        vocab_size=VOCABULARY,
        dim=16,
        num_blocks=2,
        num_heads=2,
        block="7b",
        gate_soft_cap=15.0,
        logit_soft_cap=30.0,
    ),
}


@functools.cache
def build(family: str):
    model = build_model(FAMILIES[family])
    params = jax.jit(lambda: init_params(model, seed=3))()
    return model, jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)


@pytest.fixture(params=FAMILIES)
def model_and_params(request):
    return build(request.param)


@pytest.fixture
def paper_model():
    return build("paper")
