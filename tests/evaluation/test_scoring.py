"""Scores of continuations are those of the whole text in one pass, however they are batched, shared
and cut.
"""

import numpy as np
import pytest

from tests.evaluation.conftest import ATTENTION, logits_of, random_model
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import scoring
from xlstm_jax.evaluation.scoring import Scorer
from xlstm_jax.generation import session as sessions

RNG = np.random.default_rng(0)
SHARED = RNG.integers(0, 256, 9).tolist()
PAIRS = [
    (SHARED, [1, 2, 3]),
    ([7], RNG.integers(0, 256, 12).tolist()),
    (SHARED, [9]),
    (RNG.integers(0, 256, 4).tolist(), [5, 6]),
    (SHARED, [1, 2, 4]),
    ([8], []),
]


def expected(context, continuation, config):
    text = np.zeros((1, 24), np.int32)
    tokens = [*context, *continuation]
    text[0, : len(tokens)] = tokens
    logits = np.asarray(logits_of(config)(text))[0]
    positions = range(len(context) - 1, len(tokens) - 1)
    total = sum(float(logits[at, tokens[at + 1]]) for at in positions)
    return total, all(int(logits[at].argmax()) == tokens[at + 1] for at in positions)


def check(scorer, pairs=PAIRS):
    for pair, score in zip(pairs, scorer.score(pairs), strict=True):
        total, greedy = expected(*pair, scorer.model.config)
        assert score.log_probability == pytest.approx(total, abs=1e-4)
        assert score.is_greedy == greedy


@pytest.mark.slow
def test_scores_are_those_of_the_whole_text(monkeypatch):
    reads, read = [], sessions.read

    def count(model, params, prompts, **keys):
        reads.append(prompts)
        return read(model, params, prompts, **keys)

    monkeypatch.setattr(sessions, "read", count)
    check(Scorer(*random_model(), batch_size=4))
    # three continuations, read once
    assert sum(prompts.count(tuple(SHARED)) for prompts in reads) == 1


def test_a_bounded_model_scores_what_fits_and_refuses_the_rest():
    """23 tokens behind one, beside a longer context: what fills the others up has no position."""
    scorer = Scorer(*random_model(ATTENTION), batch_size=4)
    check(scorer, [*PAIRS, ([7], RNG.integers(0, 256, 23).tolist())])
    with pytest.raises(UserError, match="25 more are to follow, but this model has learned 24"):
        scorer.score([([7], [1] * 24)])


@pytest.mark.slow
def test_pieces_and_the_heads_parts_change_nothing(monkeypatch):
    monkeypatch.setattr(sessions, "PIECE", 4)
    monkeypatch.setattr(scoring, "HEAD_TOKENS", 2)
    scoring.score_piece.clear_cache()
    check(Scorer(*random_model(), batch_size=4))
    scoring.score_piece.clear_cache()


def test_a_greedy_continuation_is_known_as_one():
    logits = np.asarray(logits_of()(np.array([SHARED + [0] * 15])))[0, len(SHARED) - 1]
    best = int(logits.argmax())
    first, second = Scorer(*random_model(), batch_size=4).score(
        [(SHARED, [best]), (SHARED, [(best + 1) % 256])]
    )
    assert first.is_greedy and not second.is_greedy
    assert first.log_probability == pytest.approx(float(logits[best]), abs=1e-5)


def test_a_context_needs_a_token():
    with pytest.raises(ValueError, match="at least one token"):
        Scorer(*random_model()).score([([], [1])])
