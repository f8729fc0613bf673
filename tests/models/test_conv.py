"""The causal convolution against a token-by-token reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xlstm_jax.models.conv import causal_conv


def reference(x, kernel, window, ids, previous):
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
        outputs.append(sum(tap * value for tap, value in zip(kernel, inputs[-width:], strict=True)))
    return np.stack(outputs), np.stack(inputs[len(inputs) - width + 1 :]) if width > 1 else np.zeros((0, x.shape[-1]))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("previous", [None, -1, 0, 5])
@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0])
def test_equals_the_reference(width, previous, padding):
    rng = np.random.default_rng(width)
    batch, time, channels = 3, 9, 2
    x = rng.normal(size=(batch, time, channels)).astype(np.float32)
    kernel = rng.normal(size=(width, channels)).astype(np.float32)
    window = rng.normal(size=(batch, width - 1, channels)).astype(np.float32)
    ids = np.cumsum(rng.random((batch, time)) < 0.3, axis=1)
    ids = np.where(rng.random((batch, time)) < padding, -1, ids)
    given = None if previous is None else jnp.full((batch,), previous)
    y, new_window = jax.jit(causal_conv)(x, kernel, window, jnp.asarray(ids), given)
    for row in range(batch):
        expected, expected_window = reference(x[row], kernel, window[row], ids[row], previous)
        assert_allclose(y[row], expected, rtol=1e-5, atol=1e-5)
        assert_allclose(new_window[row], expected_window, rtol=1e-6)


def test_without_segments_it_is_a_plain_convolution():
    x, kernel, window = (jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate([(2, 6, 3), (4, 3), (2, 3, 3)]))
    y, new_window = causal_conv(x, kernel, window)
    same, same_window = causal_conv(x, kernel, window, jnp.zeros((2, 6), jnp.int32))
    assert_allclose(y, same, rtol=1e-6)
    assert_allclose(new_window, same_window, rtol=1e-6)
