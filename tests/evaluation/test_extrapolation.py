"""Every context length sees the same tokens once; states are carried from piece to piece; positions
are told apart.
"""

import jax
import numpy as np
import pytest

from tests.evaluation.conftest import ATTENTION, CONFIG, logits_of, random_model
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import open_split
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import extrapolation
from xlstm_jax.evaluation.extrapolation import (
    Curve,
    default_contexts,
    extrapolate,
    gains,
    with_trained,
)
from xlstm_jax.evaluation.figures import extrapolation_figure
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.mesh import MeshConfig

CONTEXTS = (8, 24)


@pytest.fixture(scope="module")
def source(text_file):
    return open_split(DataConfig(validation_path=str(text_file)), "validation", 320)


def run(source, contexts=CONTEXTS, config=CONFIG, **keys):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        return extrapolate(
            *random_model(config), source, contexts, batch_size=2, mesh=mesh, max_tokens=80, **keys
        )


@pytest.mark.parametrize("config", [CONFIG, ATTENTION], ids=["recurrent", "attention"])
def test_each_length_scores_the_same_tokens_with_its_own_context(source, monkeypatch, config):
    # the longest window is two pieces, the last one shorter
    monkeypatch.setattr(extrapolation, "PIECE", 16)
    curves = run(source, config=config)
    assert [curve.context for curve in curves] == [8, 24]
    # three windows of 24; what is left of the 80 is in none
    assert all(curve.tokens.sum() == 72 for curve in curves)
    stream = np.asarray(source.tokens[:73], np.int32)
    for curve in curves:
        windows = stream[:-1].reshape(-1, curve.context)
        padded = np.pad(windows, ((0, 9 - len(windows)), (0, 24 - curve.context)))
        logs = np.asarray(logits_of(config)(padded))[: len(windows), : curve.context]
        losses = -np.take_along_axis(logs, stream[1:].reshape(-1, curve.context, 1), axis=-1)[
            ..., 0
        ]
        # whatever the context, sums lie where their tokens are in the longest windows
        by_stretch = losses.reshape(3, 8, 3).sum(axis=2)
        np.testing.assert_allclose(curve.nats, by_stretch, rtol=1e-3)
        np.testing.assert_array_equal(curve.tokens, np.full((3, 8), 3))
        assert curve.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-4)
        values = curve.values()
        assert values["positions"] == [3, 6, 9, 12, 15, 18, 21, 24]
        assert values["tokens"] == 72 and len(values["position_nats"]) == 8


def curve(context, nats):
    nats = np.asarray(nats, float)
    return Curve(context, nats, np.full(nats.shape, 2), 2 * nats.shape[1])


def test_the_gain_of_more_context_is_free_of_what_the_text_is_like():
    """Two nats less per stretch behind the first window, on passages of any difficulty."""
    hard = np.random.default_rng(0).normal(100, 30, (5, 8))
    helped = hard - 2.0 * (np.arange(8) >= 2)
    found = gains(curve(16, helped), curve(4, hard))
    # whole windows of the shorter context: the first, the second, the third and fourth
    assert [(gain.first, gain.last) for gain in found] == [(1, 4), (5, 8), (9, 12), (13, 16)]
    assert [gain.nats for gain in found] == pytest.approx([0, -1, -1, -1])
    assert [gain.error for gain in found] == pytest.approx([0] * 4, abs=1e-12)
    assert all(gain.error is None for gain in gains(curve(16, helped[:2]), curve(4, hard[:2])))


def test_the_error_of_a_gain_is_that_of_a_mean_over_windows():
    differences = np.random.default_rng(0).normal(-1, 0.5, 6)
    long, short = curve(4, differences[:, None] * [[0, 1]]), curve(2, np.zeros((6, 2)))
    gain = gains(long, short)[1]
    per_token = differences / 2
    assert gain.nats == pytest.approx(per_token.mean())
    assert gain.error == pytest.approx(per_token.std(ddof=1) / 6**0.5)


def test_contexts_by_default_are_multiples_of_the_trained_one():
    assert default_contexts(256, 447_917) == (256, 512, 1024, 2048, 4096, 8192)
    assert default_contexts(256, 1500) == (256, 512, 1024)
    assert default_contexts(256, 100) == (256,)  # which is then refused, with its reason


def test_the_trained_context_is_among_those_that_are_asked_for():
    assert with_trained((2048, 1024), 256) == (256, 1024, 2048)
    assert with_trained((1024, 2048), 1024) == (1024, 2048)
    assert with_trained((1024, 2048), 300) == (1024, 2048)  # which could not share the tokens
    assert with_trained((1024, 2048), None) == (1024, 2048)


def lines_of(axes):
    return [line.get_label() for line in axes.get_lines()]


def test_the_figure_compares_like_with_like():
    """Our model alone on its panels; the paper's models on one of their own, if at all."""
    curves = [curve(4, np.full((3, 8), 10.0)), curve(16, np.full((3, 8), 9.0))]
    own, position = extrapolation_figure(curves, 4, beside_paper=False).axes
    assert [list(line.get_xdata()) for line in own.get_lines()[:1]] == [[4, 16]]
    assert own.get_yscale() == "linear" and "trained at 4" in lines_of(own)
    assert "context 4" in position.get_ylabel()
    *ours, papers = extrapolation_figure(curves, 4, beside_paper=True).axes
    assert {"xLSTM[7:1]", "Llama", "trained at 2,048"} <= set(lines_of(papers))
    assert not any({"xLSTM[7:1]", "Llama"} & set(lines_of(axes)) for axes in ours)
    extrapolation_figure(curves[:1], None, beside_paper=False)  # nothing to compare: no error


def test_lengths_that_share_no_tokens_are_refused(source):
    with pytest.raises(UserError, match="do not divide"):
        run(source, contexts=(10, 24))
    with pytest.raises(UserError, match="less than one window"):
        run(source, contexts=(4096,))
