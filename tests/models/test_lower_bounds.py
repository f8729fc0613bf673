"""The forget gates' lower bounds of HGRN and HGRN2."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xlstm_jax.models.lower_bounds import LowerBounds, bounded_forget_gate


def test_bounds_grow_from_zero_with_the_layers_share_of_a_softmax():
    module = LowerBounds(None, 3, 4)
    variables = nn.meta.unbox(module.init(jax.random.key(0)))
    np.testing.assert_allclose(
        module.apply(variables), np.arange(4)[:, None] / 4 + np.zeros(3), rtol=1e-6
    )
    logits = np.random.default_rng(0).normal(size=(4, 3))
    bounds = module.apply({"params": {"lower_bounds": jnp.asarray(logits)}})
    shares = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(bounds[0], 0, atol=0)
    for layer in range(1, 4):
        np.testing.assert_allclose(bounds[layer], shares[1 : layer + 1].sum(0), rtol=1e-6)


def test_a_gate_keeps_its_digits_open_and_closed():
    z = np.array([-200.0, -60.0, -3.0, 0.0, 0.1, 3.0, 12.0, 40.0])
    for bound in (0.0, 0.25, 0.9):
        log_f, closed = bounded_forget_gate(jnp.asarray(z, jnp.float32)[None, :, None], bound)
        f = np.longdouble(bound) + (1 - np.longdouble(bound)) / (1 + np.exp(-np.longdouble(z)))
        exact = (1 - np.longdouble(bound)) / (1 + np.exp(np.longdouble(z)))
        np.testing.assert_allclose(closed[0, :, 0], exact.astype(float), rtol=1e-5)
        wanted = np.where(exact < 0.5, np.log1p(-np.minimum(exact, 0.5)), np.log(f)).astype(float)
        smallest = np.log(np.finfo(np.float32).tiny)  # a gate below that is 0 in float32
        np.testing.assert_allclose(log_f[0, :, 0], np.maximum(wanted, smallest), rtol=1e-5)


def test_gradients_of_closed_gates_are_finite():
    gradient = jax.grad(lambda z: bounded_forget_gate(z, jnp.zeros(2))[0].sum())
    np.testing.assert_array_equal(np.isfinite(gradient(jnp.array([[[-300.0, 300.0]]]))), True)
