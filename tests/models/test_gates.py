"""The mLSTM's gates: linear in the q, k, v that its memory gets, whatever became of them; or the
same for all tokens; or without a forget gate at all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pallas_kernels import mlstm
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig
from xlstm_jax.models.config import check_model
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import BlockDiagonalProjection, normalize
from xlstm_jax.models.mixers.mlstm import MLSTMConfig
from xlstm_jax.models.mlstm_cell import gate_weights, gates_of, value_of


class Gates(nn.Module):
    """q and k from c, v from u, perhaps with a norm on q and k, and the gates of them."""

    normed: bool
    settings: MLSTMConfig = MLSTMConfig(num_heads=2)

    @nn.compact
    def __call__(self, c, u):
        projection = functools.partial(BlockDiagonalProjection, c.shape[-1], 4, small_init(8))
        q, k, v = projection(name="q")(c), projection(name="k")(c), projection(name="v")(u)
        if self.normed:
            q, k = (normalize(x.value, 1e-6, center=False) for x in (q, k))
        weights = gate_weights(self, self.settings, 3 * c.shape[-1])
        gates = gates_of(self, weights, q, k, v)
        return gates, [value_of(x) for x in (q, k, v)]


@pytest.mark.parametrize("normed", [False, True])
def test_gates_see_what_the_memory_sees(normed):
    c, u = (jax.random.normal(jax.random.key(n), (2, 5, 16)) for n in range(2))
    model = Gates(normed)
    variables = nn.meta.unbox(model.init(jax.random.key(2), c, u))
    variables = jax.tree.map(
        lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), variables
    )
    gates, values = model.apply(variables, c, u)
    for name, found in zip(("input_gate", "forget_gate"), gates, strict=True):
        gate = variables["params"][name]
        expected = jnp.concatenate(values, axis=-1) @ gate["kernel"] + gate["bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("of_input", ["text", "bias", "fixed"])
@pytest.mark.parametrize("of_forget", ["text", "bias", "fixed"])
def test_what_decides_a_gate(of_input, of_forget):
    settings = MLSTMConfig(
        num_heads=2,
        input_gate_from=of_input,
        forget_gate_from=of_forget,
        input_gate_bias=-0.5,
        input_gate_bias_std=0.0,
    )
    c, u = (jax.random.normal(jax.random.key(n), (2, 5, 16)) for n in range(2))
    model = Gates(False, settings)
    params = nn.meta.unbox(model.init(jax.random.key(2), c, u))["params"]
    params = jax.tree.map(lambda x: x + 0.5, params)
    gates, values = model.apply({"params": params}, c, u)
    cases = zip(("input_gate", "forget_gate"), (of_input, of_forget), gates, strict=True)
    for (name, source, found), start in zip(cases, ([-0.5, -0.5], [3, 6]), strict=True):
        has = {"text": {"kernel", "bias"}, "bias": {"bias"}, "fixed": set()}[source]
        assert params.get(name, {}).keys() == has
        expected = np.array(start) + (0 if source == "fixed" else 0.5)
        if source == "text":
            expected = jnp.concatenate(values, axis=-1) @ params[name]["kernel"] + expected
        np.testing.assert_allclose(
            found, np.broadcast_to(expected, (2, 5, 2)), rtol=1e-5, atol=1e-5
        )


def test_without_forgetting_results_and_gradients_are_numbers():
    """An infinite gate (table 2, "no gates" without a bias) is the limit of large ones."""
    draw = np.random.default_rng(0)
    inputs = [draw.normal(size=(2, 20, 2, 4)).astype(np.float32) for _ in range(3)]
    zeros = np.zeros((2, 20, 2), np.float32)

    @jax.jit
    def gradient(f):
        return jax.value_and_grad(lambda q, k, v: (mlstm(q, k, v, zeros, f)[0] ** 2).sum())(*inputs)

    never, hardly = gradient(zeros + np.inf), gradient(zeros + 80)
    assert np.isfinite(never[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), never, hardly)


def test_a_fixed_gate_needs_one_value():
    config = ModelConfig(mixers={"mlstm": {"input_gate_from": "fixed"}})
    with pytest.raises(UserError, match="input_gate_bias_std is 0.1, but .* set it to 0"):
        check_model(config)
