"""The table of parameters."""

import jax.numpy as jnp

from xlstm_jax.analysis.parameters import count_parameters, parameter_table


def test_the_table_names_every_leaf_and_the_total():
    params = {
        "block": {"kernel": jnp.zeros((30, 40)), "bias": jnp.zeros(40)},
        "scale": jnp.zeros(()),
    }
    assert count_parameters(params) == 1241
    assert [line.split() for line in parameter_table(params).splitlines()] == [
        ["block/bias", "40", "40"],
        ["block/kernel", "30", "40", "1,200"],
        ["scale", "1"],
        ["total", "1,241"],
    ]
