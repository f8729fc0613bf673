"""Values and gradients of a form of an op and of its judge, compiled once and compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.testing import cases


def compiled(function, of=lambda x: x):
    """(x, dtype) -> the function's values, and gradients of a weighted sum of `of` them by x, as a
    flat list in float64.
    """

    @functools.partial(jax.jit, compiler_options=cases.QUICK_COMPILE)
    @functools.partial(jax.grad, has_aux=True)
    def differentiated(x):
        values = function(x)
        r = np.random.default_rng(7)
        weighted = (of(a) * jnp.asarray(r.normal(size=a.shape), a.dtype) for a in values)
        return sum(jnp.sum(a) for a in weighted), values

    def evaluate(x, dtype):
        with jax.enable_x64(dtype == "float64"):
            gradients, values = differentiated({n: np.asarray(a, dtype) for n, a in x.items()})
            return [np.asarray(a, np.float64) for a in jax.tree.leaves((values, gradients))]

    return evaluate


def assert_close(got, expected, tolerance):
    """The tolerance is of each array's largest entry."""
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=str(index))
