"""Layers against plain NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from xlstm_jax.models import layers


@pytest.mark.parametrize("dense_up_to", [0, 1024])
def test_a_block_diagonal_product_is_one_small_product_per_block(monkeypatch, dense_up_to):
    monkeypatch.setattr(layers, "FEW_CHANNELS", dense_up_to)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 12)).astype(np.float32), rng.normal(size=(3, 4, 4)).astype(np.float32)
    expected = np.concatenate([x[..., 4 * n : 4 * n + 4] @ kernel[n] for n in range(3)], axis=-1)
    assert_allclose(layers.block_diagonal_product(x, kernel), expected, rtol=1e-5, atol=1e-5)


def test_head_norm_centers_and_scales_each_head():
    h = np.random.default_rng(0).normal(3, 2, size=(2, 3, 2, 8)).astype(np.float32)
    y = layers.normalize(h, 0.0, center=True)
    assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    assert_allclose(y.std(axis=-1), 1, rtol=1e-5)
