"""Shapes at which jaxlib 0.10.2 to 0.12.0 compile a wrong program unless told not to:
`pallas_kernels.cpu_compiler`.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import mlstm
from pallas_kernels.cpu_compiler import FLAG, avoid_wrong_fusions


@pytest.mark.parametrize(("time", "dim"), [(64, 64), (128, 32)])
def test_one_chunk_of_many_rows_equals_the_recurrence(time, dim):
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(16, time, 4, dim)), jnp.float32) for _ in range(3))
    i, f = (jnp.asarray(draw.normal(size=(16, time, 4)) + mean, jnp.float32) for mean in (0, 3))
    h, expected = (
        jax.jit(lambda *x, backend=backend, L=L: mlstm(*x, backend=backend, chunk_size=L)[0])(
            q, k, v, i, f
        )
        for backend, L in (("chunkwise", time), ("recurrent", None))
    )
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))


def test_a_flag_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=")
    avoid_wrong_fusions()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}="
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    avoid_wrong_fusions()
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_force_host_platform_device_count=8",
        f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    ]
