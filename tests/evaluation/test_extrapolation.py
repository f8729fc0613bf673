"""Every context length sees the same tokens once; states are carried from piece to piece; positions
are told apart.
"""

import jax
import numpy as np
import pytest

from tests.evaluation.conftest import logits_of, random_model
from xlstm_jax.data.config import DataConfig, MeshConfig
from xlstm_jax.data.loader import open_split
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import extrapolation
from xlstm_jax.evaluation.extrapolation import extrapolate
from xlstm_jax.parallel import make_mesh

CONTEXTS = (8, 24)


@pytest.fixture(scope="module")
def source(text_file):
    return open_split(DataConfig(validation_path=str(text_file)), "validation", 320)


def run(source, contexts=CONTEXTS, **keys):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        return extrapolate(
            *random_model(), source, contexts, batch_size=2, mesh=mesh, max_tokens=80, **keys
        )


def test_each_length_scores_the_same_tokens_with_its_own_context(source, monkeypatch):
    monkeypatch.setattr(extrapolation, "PIECE", 8)  # the longest window is three pieces
    curves = run(source)
    assert [curve.context for curve in curves] == [8, 24]
    # three windows of 24; what is left of the 80 is in none
    assert all(curve.tokens == 72 for curve in curves)
    stream = np.asarray(source.tokens[:73], np.int32)
    for curve in curves:
        windows = stream[:-1].reshape(-1, curve.context)
        padded = np.pad(windows, ((0, 9 - len(windows)), (0, 24 - curve.context)))
        logs = np.asarray(logits_of()(padded))[: len(windows), : curve.context]
        losses = -np.take_along_axis(logs, stream[1:].reshape(-1, curve.context, 1), axis=-1)[
            ..., 0
        ]
        assert curve.nats == pytest.approx(losses.sum(), rel=1e-4)
        by_stretch = losses.sum(axis=0).reshape(len(curve.position_nats), -1).sum(axis=1)
        np.testing.assert_allclose(curve.position_nats, by_stretch, rtol=1e-3)
        assert curve.by_position()[-1][0] == curve.context


def test_lengths_that_share_no_tokens_are_refused(source):
    with pytest.raises(UserError, match="do not divide"):
        run(source, contexts=(10, 24))
    with pytest.raises(UserError, match="less than one window"):
        run(source, contexts=(4096,))
