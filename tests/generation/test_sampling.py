"""What each rule of sampling rules out, against its definition in plain Python; draws follow the
probabilities.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.errors import UserError
from xlstm_jax.generation.sampling import GREEDY, Sampling, allowed_logits, choose

LOGITS = np.random.default_rng(0).normal(0, 2, (5, 11)).astype(np.float32)
NOTHING_SEEN = np.zeros(LOGITS.shape, bool)


def probabilities(sampling: Sampling, seen=NOTHING_SEEN) -> np.ndarray:
    return np.asarray(jax.nn.softmax(allowed_logits(LOGITS, seen, sampling), axis=-1))


def softmax(row) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [weight / sum(weights) for weight in weights]


def renormalised(row: list[float], kept: set[int]) -> list[float]:
    total = sum(row[k] for k in kept)
    return [row[k] / total if k in kept else 0.0 for k in range(len(row))]


def check(sampling: Sampling, kept_of, temperature: float = 1.0):
    expected = []
    for logits in LOGITS:
        row = softmax([x / temperature for x in logits.tolist()])
        expected.append(renormalised(row, kept_of(row)))
    np.testing.assert_allclose(probabilities(sampling), expected, atol=1e-6)


def ranked(row):
    return sorted(range(len(row)), key=lambda k: -row[k])


@pytest.mark.parametrize("k", [1, 3, 11, 50])
def test_top_k_keeps_the_k_most_likely(k):
    check(Sampling(top_k=k), lambda row: set(ranked(row)[:k]))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    def kept(row):
        result, total = set(), 0.0
        for k in ranked(row):
            if total < p:
                result.add(k)
            total += row[k]
        return result

    check(Sampling(top_p=p), kept)


def test_min_p_is_relative_to_the_most_likely():
    check(Sampling(min_p=0.2), lambda row: {k for k, x in enumerate(row) if x >= 0.2 * max(row)})
    check(Sampling(min_p=0.0), lambda row: set(range(len(row))))


def test_temperature_comes_before_the_rules_that_cut():
    check(
        Sampling(temperature=3.0, min_p=0.2),
        lambda row: {k for k, x in enumerate(row) if x >= 0.2 * max(row)},
        temperature=3.0,
    )


def test_only_the_first_ids_are_choices():
    expected = [softmax(row[:4]) for row in LOGITS.tolist()]
    np.testing.assert_allclose(probabilities(Sampling(num_choices=4)), expected, atol=1e-6)


def test_the_repetition_penalty_makes_what_was_read_less_likely():
    seen = np.random.default_rng(1).random(LOGITS.shape) < 0.5
    given = np.asarray(allowed_logits(LOGITS, seen, Sampling(repetition_penalty=1.5)))
    expected = np.where(seen, np.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5), LOGITS)
    np.testing.assert_allclose(given, expected, rtol=1e-6)
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)
    np.testing.assert_array_equal(choose(LOGITS, seen, None, greedy), expected.argmax(axis=-1))


def test_greedy_takes_the_most_likely():
    np.testing.assert_array_equal(
        choose(LOGITS, NOTHING_SEEN, None, GREEDY), LOGITS.argmax(axis=-1)
    )


def test_draws_follow_the_probabilities():
    rows = 4000
    keys = jax.vmap(jax.random.key)(jnp.arange(rows, dtype=jnp.uint32))
    sampling = Sampling(temperature=2.0, top_k=5)
    drawn = choose(np.repeat(LOGITS[:1], rows, axis=0), np.zeros((rows, 11), bool), keys, sampling)
    counted = np.bincount(drawn, minlength=11) / rows
    expected = probabilities(sampling)[0]
    assert np.abs(counted - expected).max() < 5 * np.sqrt(0.25 / rows)
    assert not counted[expected == 0].any()


@pytest.mark.parametrize(
    "rule",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"num_choices": 0},
    ],
)
def test_impossible_rules_are_refused_by_name(rule):
    with pytest.raises(UserError, match=next(iter(rule))):
        Sampling(**rule)
