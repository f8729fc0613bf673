"""With 64-bit types enabled a model is the model it is without: nothing widens by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend import core

from tests.models.conftest import CONFIGS
from tests.models.test_registry import CASES
from xlstm_jax.models import build_model
from xlstm_jax.models.backbone import growing_mixers
from xlstm_jax.models.layers import Dropout

TOKENS = jax.ShapeDtypeStruct((2, 8), jnp.int32)
IDS = {"int64": jax.ShapeDtypeStruct((2, 8), "int64")}


@pytest.fixture(autouse=True)
def with_64_bits():
    with jax.enable_x64(True):
        yield


def types(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def values_in(jaxpr):
    """All that a program computes, calls in it included."""
    for equation in jaxpr.eqns:
        yield from (value.aval for value in equation.outvars)
        for part in core.jaxprs_in_params(equation.params):
            yield from values_in(part)


# models of every family of the papers, and every mixer by itself
FAMILIES = CASES | CONFIGS


@pytest.fixture(params=FAMILIES)
def config(request):
    """Nothing is compiled here, so that all of them are quick."""
    return FAMILIES[request.param]


def test_parameters_and_their_gradients_are_float32(config):
    model = build_model(config)
    variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    assert types(variables) == {"float32"}

    def loss(variables, tokens):
        return model.apply(variables, tokens)[0].sum()

    program, gradients = jax.make_jaxpr(jax.grad(loss), return_shape=True)(variables, TOKENS)
    assert types(gradients) == {"float32"}
    # nothing on the way to them is float64 either: it would be slow, and there is none on a TPU
    computed = {str(getattr(value, "dtype", "")) for value in values_in(program.jaxpr)}
    assert "float32" in computed and "float64" not in computed


@pytest.mark.parametrize("ids", [None, "int64"])
def test_a_state_has_the_types_of_the_empty_one(config, ids):
    """Also where documents are numbered in NumPy's own int64, so that a scan can carry it."""
    model, ids = build_model(config), IDS.get(ids)
    variables = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))

    def state_after(variables, tokens, state, ids):
        return model.apply(variables, tokens, state, segments=ids)[1]

    empty = jax.eval_shape(lambda: model.init_state(2, cache_length=8))
    if not growing_mixers(config):
        assert jax.eval_shape(state_after, variables, TOKENS, None, ids) == empty
    assert jax.eval_shape(state_after, variables, TOKENS, empty, ids) == empty


class Dropping(nn.Module):
    layer: type

    @nn.compact
    def __call__(self, x):
        return self.layer(0.3, name="Dropout_0")(x, deterministic=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_drops_what_it_drops_without(dtype):
    x, keys = jnp.ones((50, 20), dtype), {"dropout": jax.random.key(3)}
    dropped = Dropping(Dropout).apply({}, x, rngs=keys)
    with jax.enable_x64(False):
        expected = Dropping(nn.Dropout).apply({}, x, rngs=keys)
    assert dropped.dtype == dtype
    np.testing.assert_array_equal(dropped, expected)
    assert 0.25 < np.mean(np.asarray(dropped == 0)) < 0.35


@pytest.mark.slow
def test_a_float32_model_computes_what_it_does_without(random_variables):
    model, tokens = build_model(CONFIGS["paper"]), np.arange(12, dtype=np.int32)[None]
    with jax.enable_x64(False):
        variables = random_variables(CONFIGS["paper"])
        expected, _ = jax.jit(model.apply)(variables, tokens)
    logits, _ = jax.jit(model.apply)(variables, tokens)
    assert logits.dtype == expected.dtype
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
