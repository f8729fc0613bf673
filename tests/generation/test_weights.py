"""Weights cast beforehand give the same results to the bit, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.generation.conftest import build
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.models import build_model


def test_cast_weights_change_no_bit(model_and_params):
    config = dataclasses.replace(model_and_params[0].config, dtype="bfloat16")
    model, params = build_model(config), model_and_params[1]
    cast = cast_weights(params, config)
    smaller = [leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cast)]
    assert any(smaller) and not all(smaller)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    apply = jax.jit(model.apply)
    first, second = apply({"params": params}, tokens), apply({"params": cast}, tokens)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_nothing_is_cast_where_the_model_computes_in_float32():
    model, params = build("7b")
    cast = cast_weights(params, dataclasses.replace(model.config, dtype="float32"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(cast))
