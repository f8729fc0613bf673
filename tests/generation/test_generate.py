"""The short form for arrays: greedy is the argmax of the parallel form, the key decides the
rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.generation import generate


@pytest.fixture
def model_and_variables(paper_model):
    model, params = paper_model
    return model, {"params": params}


@pytest.fixture(scope="module")
def prompt():
    return np.random.default_rng(0).integers(0, 24, (2, 9)).astype(np.int32)


@pytest.mark.slow
def test_greedy_generation_is_the_argmax_of_the_teacher_forced_model(model_and_variables, prompt):
    model, variables = model_and_variables
    tokens = np.asarray(generate(model, variables, prompt, 12, jax.random.key(0), temperature=0.0))
    assert tokens.shape == (2, 12)
    logits, _ = jax.jit(model.apply)(variables, jnp.concatenate([prompt, tokens], axis=1))
    np.testing.assert_array_equal(tokens, jnp.argmax(logits[:, 8:-1], axis=-1))
    assert len(np.unique(tokens)) > 2  # a model stuck on one token would prove little


def test_the_key_decides_and_only_the_first_ids_are_drawn(model_and_variables, prompt):
    model, variables = model_and_variables

    def draw(seed):
        return np.asarray(
            generate(
                model, variables, prompt, 12, jax.random.key(seed), temperature=3.0, num_choices=7
            )
        )

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert draw(0).max() < 7
