"""The mLSTM's gates are linear in the q, k, v that its memory gets, whatever became of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import BlockDiagonalProjection, normalize
from xlstm_jax.models.mixers.mlstm import MLSTMConfig
from xlstm_jax.models.mlstm_cell import gates_of, value_of


class Gates(nn.Module):
    """q and k from c, v from u, perhaps with a norm on q and k, and the gates of them."""

    normed: bool

    @nn.compact
    def __call__(self, c, u):
        projection = functools.partial(BlockDiagonalProjection, c.shape[-1], 4, small_init(8))
        q, k, v = projection(name="q")(c), projection(name="k")(c), projection(name="v")(u)
        if self.normed:
            q, k = (normalize(x.value, 1e-6, center=False) for x in (q, k))
        gates = gates_of(self, MLSTMConfig(num_heads=2), q, k, v)
        return gates, [value_of(x) for x in (q, k, v)]


@pytest.mark.parametrize("normed", [False, True])
def test_gates_see_what_the_memory_sees(normed):
    c, u = (jax.random.normal(jax.random.key(n), (2, 5, 16)) for n in range(2))
    model = Gates(normed)
    variables = nn.meta.unbox(model.init(jax.random.key(2), c, u))
    variables = jax.tree.map(
        lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), variables
    )
    gates, values = model.apply(variables, c, u)
    for name, found in zip(("input_gate", "forget_gate"), gates, strict=True):
        gate = variables["params"][name]
        expected = jnp.concatenate(values, axis=-1) @ gate["kernel"] + gate["bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
