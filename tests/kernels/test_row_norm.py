"""The norm of rows: the definition, and the Triton kernel of one row (interpreted) beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import row_norm
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
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("dim", (64, 96, 768))
def test_one_row(dim, dtype, center):
    x, scale = draw(dim, dtype=dtype)
    with interpreted(True):
        kernel = row_norm(x, scale, EPS, center=center, backend="pallas_triton")
    plain = row_norm(x, scale, EPS, center=center)
    tolerance = 2e-6 if dtype == "float32" else 5e-3
    for found in (kernel, plain):
        assert found.dtype == x.dtype and found.shape == x.shape
        np.testing.assert_allclose(
            found.astype(jnp.float32), exact(x, scale, center), rtol=tolerance, atol=tolerance
        )


def test_every_derivative_is_that_of_the_definition():
    x, scale = draw(32)

    def derivatives(backend):
        def loss(x, scale):
            return jnp.sum(jnp.sin(row_norm(x, scale, EPS, center=True, backend=backend)))

        return jax.grad(loss, (0, 1))(x, scale), jax.jvp(loss, (x, scale), (x + 1, scale))

    with interpreted(True):
        found = derivatives("pallas_triton")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        derivatives("plain"),
    )


@pytest.mark.parametrize(("rows", "kernels"), ((1, 1), (2, 0)))
def test_a_gpu_takes_the_kernel_for_one_row(rows, kernels):
    shapes = [((rows, 4096), "bfloat16"), ((4096,), "float32")]
    program = lowered_for("H100", lambda *x: row_norm(*x, EPS, center=False), shapes)
    assert triton_kernels(program).total() == kernels


def test_what_it_refuses():
    x, scale = draw(64)
    with pytest.raises(ValueError, match=r"they must be \[R D\] and \[D\]"):
        row_norm(x, scale[1:], EPS, center=True)
    odd, even = draw(17 * 3), draw(64, rows=2)
    with interpreted(True):
        for arrays, reason in ((odd, "power of two"), (even, "for one row")):
            with pytest.raises(NotImplementedError, match=reason):
                row_norm(*arrays, EPS, center=True, backend="pallas_triton")
