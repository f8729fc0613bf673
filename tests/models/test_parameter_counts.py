"""Parameter counts equal the papers' (2405.04517 table 7, 2503.13427 table 4) to the last
parameter.
"""

import jax
import jax.numpy as jnp
import pytest

from xlstm_jax import config
from xlstm_jax.models import build_model

COUNTS = {
    "xlstm_125m.py:1_0-15b": 163_806_144,
    "xlstm_350m.py:1_0-15b": 409_290_112,
    "xlstm_760m.py:1_0-300b": 840_427_392,
    "xlstm_1.3b.py:1_0-300b": 1_422_559_616,
    "xlstm_2.7b.py:1_0-15b": 2_788_396_032,
    "xlstm_125m.py:7_1-300b": 163_690_928,
    "xlstm_350m.py:7_1-300b": 408_436_048,
    "xlstm_760m.py:7_1-15b": 839_736_144,
    "xlstm_1.3b.py:7_1-15b": 1_420_065_104,
    "xlstm_7b.py": 6_865_424_896,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_count_is_the_printed_one(name, count):
    model = build_model(config.load(f"configs/{name}").model)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
