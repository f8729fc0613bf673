"""The norm of rows: the definition, and the Triton kernels (interpreted) beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import row_norm, triton_norm
from pallas_kernels.interpret import interpreted
from tests.kernels.test_gpu_lowering import lowered_for, triton_kernels

EPS = 1e-3


def draw(dim, rows=1, dtype="float32"):
    r = np.random.default_rng(0)
    return jnp.asarray(r.normal(size=(rows, dim)) + 3, dtype), jnp.asarray(r.normal(size=dim))


def exact(x, scale, center):
    x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    x = x - x.mean(axis=-1, keepdims=True) if center else x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * scale


@pytest.mark.parametrize("center", (True, False))
@pytest.mark.parametrize(
    ("rows", "dim", "dtype"),
    [(1, 64, "float32"), (1, 768, "bfloat16"), (5, 96, "float32"), (9, 2048, "bfloat16")],
)
def test_it_is_the_definition(rows, dim, dtype, center):
    """Of rows that fill no tile, and of several tiles."""
    x, scale = draw(dim, rows, dtype)
    norm = functools.partial(row_norm, eps=EPS, center=center)
    with interpreted(True):
        kernel = jax.jit(functools.partial(norm, backend="pallas_triton"))(x, scale)
    plain = jax.jit(norm)(x, scale)
    tolerance = 2e-6 if dtype == "float32" else 5e-3
    for found in (kernel, plain):
        assert found.dtype == x.dtype and found.shape == x.shape
        np.testing.assert_allclose(
            np.asarray(found, np.float32), exact(x, scale, center), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(("rows", "programs"), [(1, 1056), (7, 1)])
def test_every_derivative_is_that_of_the_definition(rows, programs, monkeypatch):
    """Also where a program has several tiles, the last with fewer rows."""
    monkeypatch.setattr(triton_norm, "PROGRAMS", programs)
    arrays = draw(384, rows)

    @functools.partial(jax.jit, static_argnums=2)
    def derivatives(x, scale, backend):
        vector = jnp.cos(x)

        def loss(x, scale):
            return jnp.sum(jnp.sin(row_norm(x, scale, EPS, center=True, backend=backend)))

        def slope(x):
            return jnp.sum(vector * jax.grad(loss)(x, scale))

        gradients = jax.grad(loss, (0, 1))(x, scale)
        return gradients, jax.jvp(loss, (x, scale), (x + 1, scale)), jax.grad(slope)(x)

    with interpreted(True):
        found = derivatives(*arrays, "pallas_triton")
    with jax.enable_x64(True):
        exact = derivatives(*(jnp.asarray(x, "float64") for x in arrays), "plain")
    for x, expected in zip(*map(jax.tree.leaves, (found, exact)), strict=True):
        x, expected = np.asarray(x), np.asarray(expected)
        assert np.abs(x - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("rows", (1, 4096))
def test_a_gpu_takes_one_kernel_each_way(rows):
    shapes = [((rows, 4096), "bfloat16"), ((4096,), "float32")]

    def loss(*arrays):
        return jnp.sum(row_norm(*arrays, EPS, center=False).astype(jnp.float32))

    program = lowered_for("H100", jax.value_and_grad(loss, (0, 1)), shapes)
    assert triton_kernels(program) == {"row_norm": 1, "row_norm_back": 1}


def test_what_it_refuses():
    x, scale = draw(64)
    with pytest.raises(ValueError, match=r"they must be \[R D\] and \[D\]"):
        row_norm(x, scale[1:], EPS, center=True)
    with interpreted(True):
        with pytest.raises(
            NotImplementedError, match="16 times a power of two; it has 51 channels"
        ):
            row_norm(*draw(17 * 3), EPS, center=True, backend="pallas_triton")
        with jax.enable_x64(True), pytest.raises(NotImplementedError, match="no float64"):
            row_norm(*draw(64, dtype="float64"), EPS, center=True, backend="pallas_triton")
