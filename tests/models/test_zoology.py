"""H3 and Hyena give what zoology's modules give with the same weights
(tests/parity/make_zoology_fixtures.py wrote it), at once and token by token.
"""

import pathlib

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from xlstm_jax.models.mixer import Depth
from xlstm_jax.models.mixers import h3, hyena

FILE = pathlib.Path(__file__).parent / "fixtures/zoology.npz"
SETTINGS = {
    hyena: hyena.HyenaConfig(filter_hidden=8, filter_length=24, filter_waves=2, bias=True),
    h3: h3.H3Config(conv_width=8, state_dim=4, bias=True),
}


@pytest.mark.parametrize("file", [hyena, h3], ids=["hyena", "h3"])
def test_a_mixer_gives_what_theirs_gives(file):
    with np.load(FILE) as arrays:
        own = {name: arrays[name] for name in arrays if name.startswith(f"{file.NAME}/")}
    x, y = (own.pop(f"{file.NAME}/{name}") for name in "xy")
    flat = {tuple(name.split("/")[2:]): value for name, value in own.items()}
    module = file.MIXER.module(SETTINGS[file], dim=x.shape[-1], depth=Depth(0, 1))
    fresh = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    params = {"params": unflatten_dict(flat)}
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    apply = jax.jit(module.apply)
    whole, _ = apply(params, x)
    np.testing.assert_allclose(whole, y, rtol=1e-4, atol=1e-4)
    state = file.MIXER.empty_state(SETTINGS[file], x.shape[-1], len(x), x.dtype, x.shape[1])
    steps = []
    for token in range(x.shape[1]):
        step, state = apply(params, x[:, token : token + 1], state)
        steps.append(step)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), y, rtol=1e-4, atol=1e-4)
