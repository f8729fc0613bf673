"""Hyena's cache: what is read beyond its end is lost and says so, padding takes no room."""

import jax
import numpy as np
from flax import linen as nn
from numpy.testing import assert_allclose

from xlstm_jax.models.mixer import Depth, Segments
from xlstm_jax.models.mixers.hyena import MIXER, HyenaConfig

SETTINGS = HyenaConfig(order=3, filter_hidden=4, filter_length=6, filter_frequency=1.0)


def test_a_token_beyond_the_cache_is_not_a_number():
    module = MIXER.module(SETTINGS, dim=8, depth=Depth(0, 1))
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
    apply = jax.jit(module.apply)
    whole, state = apply(params, x)
    assert state is None
    ids = np.array([[0] * 9, [0, 0, -1, -1, 0, 0, 0, 0, 0]], np.int32)
    real = ids >= 0
    expected = np.full(x.shape, np.nan, np.float32)
    expected[0, :6] = whole[0, :6]
    only = np.flatnonzero(real[1])[:6]
    padded, _ = apply(params, x[1:, real[1]])
    expected[1, only] = padded[0, :6]
    for cuts in ([0, 9], [0, 4, *range(5, 10)]):
        state, parts = MIXER.empty_state(SETTINGS, 8, 2, np.float32, 6), []
        for start, end in zip(cuts, cuts[1:], strict=False):
            y, state = apply(params, x[:, start:end], state, Segments(ids[:, start:end]))
            parts.append(y)
        assert_allclose(np.concatenate(parts, axis=1)[real], expected[real], rtol=1e-4, atol=1e-5)
        assert state.length.tolist() == [9, 7]
