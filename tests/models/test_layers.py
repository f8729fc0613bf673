"""Layers against plain NumPy."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from xlstm_jax.models import cpu_forms, layers
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.mesh import MeshConfig


@pytest.mark.parametrize("dense_up_to", [0, 1024])
def test_a_block_diagonal_product_is_one_small_product_per_block(monkeypatch, dense_up_to):
    monkeypatch.setattr(cpu_forms, "FEW_CHANNELS", dense_up_to)
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=(2, 3, 12)).astype(np.float32),
        rng.normal(size=(3, 4, 4)).astype(np.float32),
    )
    expected = np.concatenate([x[..., 4 * n : 4 * n + 4] @ kernel[n] for n in range(3)], axis=-1)
    assert_allclose(cpu_forms.block_diagonal_product(x, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_blocks", "size"), [(3, 4), (16, 4), (12, 4), (2, 40)])
def test_a_block_diagonal_kernels_gradient_takes_each_block_by_itself(num_blocks, size):
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(2, 3, num_blocks * size)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(num_blocks, size, size)).astype(np.float32)
    dx, d_kernel = jax.vjp(cpu_forms.block_diagonal_product, x, kernel)[1](dy)
    x, dy = (a.reshape(2, 3, num_blocks, size) for a in (x, dy))
    assert_allclose(d_kernel, np.einsum("btni,btno->nio", x, dy), rtol=1e-5, atol=1e-5)
    assert_allclose(
        dx.reshape(x.shape), np.einsum("btno,nio->btni", dy, kernel), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("batch", "time"), [(1, 5), (2, 12), (8, 1), (2, 16), (3, 8)])
def test_a_sum_over_tokens_takes_every_token(batch, time):
    x = np.random.default_rng(0).normal(size=(batch, time, 6)).astype(np.float32)
    _, gradient = jax.vjp(lambda row: cpu_forms.along_tokens(row, x.shape[:2]), x[0, 0])
    assert_allclose(gradient(x)[0], x.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_a_row_at_every_token_moves_as_the_row_does():
    """Forward mode, with the sum in eighths and without."""
    row, move = np.arange(3.0, dtype=np.float32), np.array([1, -2, 0.5], np.float32)
    for shape in ((2, 16), (3, 5)):
        found = jax.jvp(
            lambda row, shape=shape: cpu_forms.along_tokens(row, shape), (row,), (move,)
        )
        for tokens, value in zip(found, (row, move), strict=True):
            assert_allclose(tokens, np.broadcast_to(value, (*shape, 3)))


def operations(program):
    """What a traced program does, in its order: operations and shapes, those of inner programs
    too.
    """
    found = []
    for equation in program.eqns:
        found.append((equation.primitive.name, [x.aval.shape for x in equation.outvars]))
        for value in equation.params.values():
            if hasattr(value, "eqns"):
                found += operations(value)
    return found


@pytest.mark.parametrize(
    "function",
    [
        cpu_forms.block_diagonal_product,
        lambda x, kernel: cpu_forms.scale_channels(x, kernel.reshape(-1)[:32]),
    ],
)
def test_a_batch_spread_over_devices_is_computed_as_on_one(function):
    """Each device has whole sequences and channels, so that the fast forms of one device serve a
    data-parallel step too.
    """
    x, kernel = np.ones((8, 16, 32), np.float32), np.ones((8, 4, 4), np.float32)
    gradient = jax.grad(lambda x, kernel: function(x, kernel).sum(), argnums=(0, 1))
    on_one = operations(jax.make_jaxpr(gradient)(x, kernel))
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert operations(jax.make_jaxpr(gradient)(x, kernel)) == on_one
    with jax.set_mesh(make_mesh(MeshConfig(data=1, sequence=8))):
        assert operations(jax.make_jaxpr(gradient)(x, kernel)) != on_one


def test_head_norm_centers_and_scales_each_head():
    h = np.random.default_rng(0).normal(3, 2, size=(2, 3, 2, 8)).astype(np.float32)
    y = layers.normalize(h, 0.0, center=True)
    assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    assert_allclose(y.std(axis=-1), 1, rtol=1e-5)
