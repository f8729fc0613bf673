"""With 64-bit types enabled a model is the model it is without: nothing widens by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.conftest import CONFIGS
from xlstm_jax.models import build_model

TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)
IDS = {name: jax.ShapeDtypeStruct((2, 8), name) for name in ("int32", "int64")}


@pytest.fixture(autouse=True)
def with_64_bits():
    with jax.enable_x64(True):
        yield


def types(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_parameters_and_their_gradients_are_float32(config):
    model = build_model(config)
    variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    assert types(variables) == {"float32"}

    def loss(variables, tokens):
        return model.apply(variables, tokens)[0].sum()

    assert types(jax.eval_shape(jax.grad(loss), variables, TOKENS)) == {"float32"}


@pytest.mark.parametrize("ids", [None, "int32", "int64"])
def test_a_state_has_the_types_of_the_empty_one(config, ids):
    """Also where documents are numbered in NumPy's own int64, so that a scan can carry it."""
    model, ids = build_model(config), IDS.get(ids)
    variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))

    def state_after(variables, tokens, state, ids):
        return model.apply(variables, tokens, state, segment_ids=ids)[1]

    empty = jax.eval_shape(lambda: model.init_state(2))
    assert jax.eval_shape(state_after, variables, TOKENS, None, ids) == empty
    assert jax.eval_shape(state_after, variables, TOKENS, empty, ids) == empty


def test_a_float32_model_computes_what_it_does_without(random_variables):
    model, tokens = build_model(CONFIGS["paper"]), np.arange(12).reshape(1, 12) % 23
    variables = random_variables(CONFIGS["paper"])
    logits, _ = jax.jit(model.apply)(variables, tokens)
    with jax.enable_x64(False):
        expected, _ = jax.jit(model.apply)(variables, tokens)
    assert logits.dtype == expected.dtype
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
