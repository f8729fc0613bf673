"""A model inside vmap, pmap and checkpoint gives what it gives outside. (A training run under jax's
checks, for NaN and for tracers that are left behind, is in tests/training/test_loop.py.)
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.conftest import CONFIGS
from xlstm_jax.models import build_model

pytestmark = pytest.mark.slow  # each compiles a model

TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
IDS = np.array([[0, 0, -1, 1, 1, 1, 2, -1, -1], [3] * 9], np.int32)  # documents and padding


@pytest.fixture(
    scope="module",
    params=("paper", "7b", "llama"),
)
def model(request):
    """One block of each kind."""
    config = CONFIGS[request.param]
    blocks = config.blocks.replace("2*", "")
    return build_model(dataclasses.replace(config, blocks=blocks, num_blocks=1 + ("," in blocks)))


@pytest.fixture(scope="module")
def params(model, random_variables):
    return random_variables(model.config)["params"]


@pytest.fixture(scope="module")
def gradient_of(model):
    """(parameters, tokens [B T], ids) -> (loss, gradients): not compiled."""

    def loss(params, tokens, ids):
        logits, _ = model.apply({"params": params}, tokens, segments=ids)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(ids >= 0, chosen, 0))

    return jax.value_and_grad(loss)


@pytest.fixture(scope="module")
def expected(gradient_of, params):
    """Of both rows together."""
    return jax.jit(gradient_of)(params, TOKENS, IDS)


def assert_close(got, expected):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * largest)


def rows(tokens, ids):
    return tokens[:, None], ids[:, None]


def test_vmap_and_pmap_take_rows_by_themselves(gradient_of, params, expected):
    """Their losses and gradients add up to those of all rows."""
    batched = jax.jit(jax.vmap(gradient_of, (None, 0, 0)))(params, *rows(TOKENS, IDS))
    assert_close(jax.tree.map(lambda x: x.sum(0), batched), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        spread = jax.pmap(gradient_of, in_axes=(None, 0, 0))(params, *rows(TOKENS, IDS))
    assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 2
    assert_close(jax.tree.map(lambda x: np.asarray(x).sum(0), spread), expected)


def test_checkpoint_changes_no_gradient(model, params, gradient_of, expected):
    def loss(params, tokens, ids):
        return gradient_of(params, tokens, ids)[0]

    again = jax.value_and_grad(jax.checkpoint(loss))
    assert_close(jax.jit(again)(params, TOKENS, IDS), expected)
