"""Generation with the recurrent step gives what the parallel form says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ModelConfig
from xlstm_jax.generation import generate
from xlstm_jax.models import build_model
from xlstm_jax.training.state import init_params


@pytest.fixture(scope="module")
def model_and_variables():
    """Untrained, with large weights: its choices depend on all that was read."""
    config = ModelConfig(vocab_size=24, dim=16, num_blocks=2, num_heads=2, slstm_positions=(1,), slstm_recurrent_init="uniform")
    model = build_model(config)
    params = jax.jit(lambda: init_params(model, seed=3))()
    return model, {"params": jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)}


@pytest.fixture(scope="module")
def prompt():
    return np.random.default_rng(0).integers(0, 24, (2, 9)).astype(np.int32)


def test_greedy_generation_is_the_argmax_of_the_teacher_forced_model(model_and_variables, prompt):
    model, variables = model_and_variables
    tokens = np.asarray(generate(model, variables, prompt, 12, jax.random.key(0), temperature=0.0))
    assert tokens.shape == (2, 12)
    logits, _ = jax.jit(model.apply)(variables, jnp.concatenate([prompt, tokens], axis=1))
    np.testing.assert_array_equal(tokens, jnp.argmax(logits[:, 8:-1], axis=-1))
    assert len(np.unique(tokens)) > 2  # a model stuck on one token would prove little


def test_draws_follow_the_models_probabilities(model_and_variables):
    model, variables = model_and_variables
    rows = 4000
    prompt = np.full((rows, 1), 5, np.int32)
    tokens = np.asarray(generate(model, variables, prompt, 1, jax.random.key(1), temperature=2.0))[:, 0]
    logits, _ = jax.jit(model.apply)(variables, prompt[:1])
    expected = jax.nn.softmax(logits[0, -1] / 2.0)
    counted = np.bincount(tokens, minlength=24) / rows
    assert np.abs(counted - expected).max() < 5 * np.sqrt(0.25 / rows)


def test_the_key_decides_and_only_the_first_ids_are_drawn(model_and_variables, prompt):
    model, variables = model_and_variables

    def draw(seed):
        return np.asarray(generate(model, variables, prompt, 12, jax.random.key(seed), temperature=3.0, num_choices=7))

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert draw(0).max() < 7
