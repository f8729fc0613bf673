"""A model's loss in JAX's other modes: forward mode, linearization and second derivatives, against
finite differences in float64.

Reverse mode's first derivative is the other tests' business.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.models import ModelConfig, build_model

# a block by its mixers, each with settings
BLOCKS = {
    "mlstm": {"mlstm": {}},
    "slstm": {"slstm": {}, "mlp": {}},
    "7b": {"mlstm_7b": {}, "mlp": {"activation": "silu"}},
    "llama": {"attention": {}, "mlp": {"activation": "silu"}},
}
# The mLSTM's stabilizer counts as a constant, which is exact but for the eps that is added to its
# denominator (1e-7 of the slope with the usual 1e-6).
SMALL_EPS = {"mlstm": {"eps": 1e-12}, "mlstm_7b": {"eps": 1e-12}}


def case(block, backend, *marks):
    """A kind of block with a backend of its cell."""
    return pytest.param(block, backend, marks=marks, id=f"{block}-{backend}")


slow = pytest.mark.slow
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 8)).astype(np.int32)
IDS = np.array([[0] * 3 + [1] * 5, [2] * 6 + [-1] * 2], np.int32)


@functools.cache
def along_two_directions(block, backend):
    """The loss at t [2]: at random parameters, moved by t along two random directions."""
    mixers = {name: settings | SMALL_EPS.get(name, {}) for name, settings in BLOCKS[block].items()}
    cell = next(iter(mixers))
    mixers[cell] = mixers[cell] | {"num_heads": 2, "backend": backend}
    config = ModelConfig(
        dim=8,
        num_blocks=1,
        vocab_size=7,
        dtype="float64",
        blocks="+".join(mixers),
        logit_soft_cap=30.0 if block == "7b" else None,
        mixers=mixers,
    )
    model = build_model(config)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    draw = np.random.default_rng(1)
    point, *directions = (
        jax.tree.map(lambda x: draw.normal(0.1, 0.3, x.shape), shapes) for _ in range(3)
    )

    def loss(t):
        variables = jax.tree.map(lambda p, a, b: p + t[0] * a + t[1] * b, point, *directions)
        logits, _ = model.apply(variables, TOKENS, segments=IDS)
        return jnp.mean(jnp.square(logits - 0.5))

    return loss


@pytest.fixture(autouse=True)
def with_64_bits():
    with jax.enable_x64(True):
        yield


def difference(function, direction, step=1e-5):
    """The central difference of a function at 0 along a direction."""
    return (function(step * direction) - function(-step * direction)) / (2 * step)


@pytest.mark.parametrize(
    ("block", "backend"),
    [
        case("mlstm", "parallel"),
        case("mlstm", "recurrent", slow),
        case("mlstm", "chunkwise"),
        case("slstm", "recurrent"),
        case("7b", "parallel", slow),
    ],
)
def test_forward_mode_and_linearization_give_the_slope(block, backend):
    loss, direction = along_two_directions(block, backend), np.array([0.6, -0.8])
    slope = difference(jax.jit(loss), direction)

    def both(t, direction):
        value, linear = jax.linearize(loss, t)
        return value, linear(direction), jax.jvp(loss, (t,), (direction,))

    value, linear, (same_value, tangent) = jax.jit(both)(np.zeros(2), direction)
    assert value == same_value
    np.testing.assert_allclose([linear, tangent], slope, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "backend"),
    [
        case("mlstm", "chunkwise"),
        case("slstm", "recurrent"),
        case("7b", "parallel"),
    ],
)
def test_the_hessian_is_the_slope_of_the_gradient(block, backend):
    loss = along_two_directions(block, backend)
    gradient = jax.jit(jax.grad(loss))
    expected = [difference(gradient, direction) for direction in np.eye(2)]
    found = jax.jit(jax.hessian(loss))(np.zeros(2))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(found).max())
    reverse_twice = jax.jit(jax.jacrev(jax.grad(loss)))(np.zeros(2))
    np.testing.assert_allclose(reverse_twice, found, rtol=1e-10, atol=1e-12)
