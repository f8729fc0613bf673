"""The causal convolution against a token-by-token reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xlstm_jax.models.conv import causal_conv


def reference(x, kernel, bias, window, ids, previous):
    """One sequence, one token at a time: a list of the current document's inputs."""
    width = len(kernel)
    inputs, last = list(window), previous
    outputs = []
    for token, document in zip(x, ids, strict=True):
        if document < 0:
            outputs.append(np.zeros_like(token))
            continue
        if last is not None and last >= 0 and document != last:
            inputs = [np.zeros_like(token)] * (width - 1)
        last = document
        inputs.append(token)
        outputs.append(
            bias + sum(tap * value for tap, value in zip(kernel, inputs[-width:], strict=True))
        )
    return np.stack(outputs), np.stack(
        inputs[len(inputs) - width + 1 :]
    ) if width > 1 else np.zeros((0, x.shape[-1]))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("previous", [None, -1, 0, 5])
@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
def test_equals_the_reference(width, previous, padding):
    rng = np.random.default_rng(width)
    batch, time, channels = 3, 9, 2
    x = rng.normal(size=(batch, time, channels)).astype(np.float32)
    kernel = rng.normal(size=(width, channels)).astype(np.float32)
    bias = rng.normal(size=channels).astype(np.float32)
    window = rng.normal(size=(batch, width - 1, channels)).astype(np.float32)
    ids = np.cumsum(rng.random((batch, time)) < 0.3, axis=1)
    ids = np.where(rng.random((batch, time)) < padding, -1, ids)
    given = None if previous is None else jnp.full((batch,), previous)
    y, new_window = jax.jit(causal_conv)(x, kernel, bias, window, jnp.asarray(ids), given)
    for row in range(batch):
        expected, expected_window = reference(x[row], kernel, bias, window[row], ids[row], previous)
        assert_allclose(y[row], expected, rtol=1e-5, atol=1e-5)
        assert_allclose(new_window[row], expected_window, rtol=1e-6)


def random_inputs(time=6, width=4, channels=3):
    shapes = ((2, time, channels), (width, channels), (channels,), (2, width - 1, channels))
    return tuple(
        jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate(shapes)
    )


def test_without_segments_it_is_a_plain_convolution():
    y, new_window = causal_conv(*random_inputs())
    same, same_window = causal_conv(*random_inputs(), jnp.zeros((2, 6), jnp.int32))
    assert_allclose(y, same, rtol=1e-6)
    assert_allclose(new_window, same_window, rtol=1e-6)


@pytest.mark.parametrize("ids", [None, [[0, 0, 1, 1, 1, 2], [0, -1, 0, -1, 3, 3]]])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_its_gradients_are_those_of_the_formula(width, ids):
    """The gradient by hand against autodiff of the sum over the tokens of the own document, padding
    looked through.
    """
    ids = None if ids is None else np.asarray(ids)

    def formula(x, kernel, bias, window):
        outputs = []
        for row in range(2):
            inputs = list(window[row])
            for t in range(x.shape[1]):
                if ids is not None and ids[row, t] < 0:
                    outputs.append(jnp.zeros_like(bias))
                    continue
                before = [] if ids is None else [d for d in ids[row, :t] if d >= 0]
                if before and before[-1] != ids[row, t]:
                    inputs = [jnp.zeros_like(bias)] * (width - 1)
                inputs.append(x[row, t])
                outputs.append(
                    bias
                    + sum(kernel[tap] * inputs[len(inputs) - width + tap] for tap in range(width))
                )
        return jnp.stack(outputs).reshape(x.shape)

    inputs = random_inputs(width=width)
    weights = jax.random.normal(jax.random.key(9), inputs[0].shape)
    got = jax.grad(lambda *inputs: jnp.sum(weights * causal_conv(*inputs, ids)[0]), (0, 1, 2, 3))(
        *inputs
    )
    expected = jax.grad(lambda *inputs: jnp.sum(weights * formula(*inputs)), (0, 1, 2, 3))(*inputs)
    for x, y in zip(got, expected, strict=True):
        assert_allclose(x, y, rtol=1e-5, atol=1e-5)
