"""Rows of the embedding: what is looked up, and a gradient that no frequent token loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.models.language_model import rows_of

TOKENS = np.array([[0, 4, 0, 2], [4, 4, 1, 9]], np.int32)


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_every_occurrence_of_a_frequent_token_counts(positions):
    """20,000 times the same small gradient: a bfloat16 sum would end at 256 times it."""
    model = build_model(
        ModelConfig(
            dim=4, num_blocks=0, vocab_size=7, final_norm=False, dtype="bfloat16",
            positions=positions, max_positions=5 if positions == "learned" else None,
        )
    )  # fmt: skip
    tokens = jnp.tile(jnp.array([3, 3, 3, 3, 5]), (5000, 1))
    params = model.init(jax.random.key(0), tokens[:1])

    def loss(params):
        y, _ = model.apply(params, tokens, method="hidden")
        return 0.5**10 * jnp.sum(y.astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss))(params)["params"]
    of_rows = 0.5**10 * np.array([0, 0, 0, 20_000, 0, 5_000, 0])
    table = gradient["embedding"]["embedding"].value
    np.testing.assert_allclose(table, np.tile(of_rows[:, None], 4), rtol=2**-8)
    if positions == "learned":
        found = gradient["position_embedding"]["embedding"].value
        np.testing.assert_allclose(found, np.full((5, 4), 0.5**10 * 5_000), rtol=2**-8)


def test_rows_and_their_derivatives_are_those_of_a_lookup():
    """Of an index beyond the end NaN, in every mode of differentiation."""
    with jax.enable_x64(True):
        table, direction, weights = (
            jax.random.normal(jax.random.key(seed), shape, jnp.float64)
            for seed, shape in ((0, (9, 3)), (1, (9, 3)), (2, (2, 4, 3)))
        )

        def ours(table):
            return rows_of(table, TOKENS, jnp.dtype("float64"), "vocab")

        def plain(table):
            return jnp.take(table, TOKENS, axis=0, mode="fill")

        def derivatives(rows):
            def loss(table):
                return jnp.sum((weights * rows(table) ** 3)[:, :3])

            return (
                rows(table),
                jax.jvp(rows, (table,), (direction,)),
                jax.grad(loss)(table),
                jax.jvp(jax.grad(loss), (table,), (direction,))[1],
            )

        assert np.isnan(ours(table)[1, 3]).all()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14),
            derivatives(ours),
            derivatives(plain),
        )
