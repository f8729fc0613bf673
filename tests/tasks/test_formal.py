"""Formal languages: samples are pure functions of their number, only the answer counts."""

import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks.formal import PAD, UNCOUNTED

SMALL = {"task.name": "formal", "data.context_length": 40, "data.batch_size": 16}


def formal(**overrides):
    values = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


def test_the_answer_of_parity_is_a_where_the_number_of_bs_is_even():
    batch = formal().batch(0, 0, range(16))
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        content = tokens[tokens != PAD]
        (place,) = np.flatnonzero(targets != UNCOUNTED)
        assert place == len(content) - 1  # predicted at the last token of the content
        assert targets[place] == (1 if list(content).count(2) % 2 == 0 else 2)


def test_the_model_never_sees_the_answer():
    batch = formal().batch(0, 3, range(16))
    asked = batch.targets != UNCOUNTED
    after = np.zeros_like(asked)
    after[:, 1:] = asked[:, :-1]
    assert (batch.tokens[after] == PAD).all()


def test_lengths_count_content_and_answer_and_take_their_whole_range():
    batch = formal(task__formal__lengths=(3, 6)).batch(0, 0, range(16))
    lengths = {int(np.sum(tokens != PAD)) + 1 for tokens in batch.tokens}
    assert lengths == {3, 4, 5, 6}


def test_a_sample_depends_on_seed_and_number_alone():
    task = formal()
    whole = task.batch(5, 2, range(16))
    part = task.batch(5, 2, range(4, 8))
    np.testing.assert_array_equal(part.tokens, whole.tokens[4:8])
    read = next(task.batches(2, range(16)))
    np.testing.assert_array_equal(read.tokens, task.batch(0, 2, range(16)).tokens)
    assert (task.batch(6, 2, range(16)).tokens != whole.tokens).any()


def test_held_out_samples_are_longer_and_each_counts_once():
    task = formal(task__formal__held_out_samples=20)
    held_out = task.held_out()["validation"]
    batches = list(held_out.batches(8))
    assert [batch.tokens.shape for batch in batches] == [(8, 256)] * 3
    assert sum((batch.targets != UNCOUNTED).any(axis=1).sum() for batch in batches) == 20
    shortest = min((b.tokens != PAD).sum(axis=1).min() for b in batches[:2])
    assert shortest >= 39


class Right:
    """A model that knows parity, or says the opposite."""

    def __init__(self, right: bool):
        self.right = right

    def apply(self, variables, tokens, **_):
        answer = 1 + jnp.cumsum(tokens == 2, axis=1) % 2
        answer = answer if self.right else 3 - answer
        return 20.0 * (answer[..., None] == jnp.arange(5)), None


@pytest.mark.parametrize(("right", "scaled"), [(True, 1.0), (False, -1.0)])
def test_accuracy_is_scaled_between_chance_and_all_right(right, scaled):
    task = formal()
    sums = task.sums(Right(right), {}, task.batch(0, 0, range(16)))
    found = task.summary({name: (float(a), float(b)) for name, (a, b) in sums.items()})
    assert found["scaled_accuracy"] == pytest.approx(scaled)
    assert found["sequence_accuracy"] == float(right)
    assert sums["loss"][1] == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task.formal.lengths": (9, 3)}, "task.formal.lengths is .*must not be the smaller"),
        ({"data.context_length": 30}, "data.context_length is 30, less than the longest sample"),
        ({"model.vocab_size": 2}, "model.vocab_size is 2; the language 'parity' has 3 tokens"),
        ({"data.workers": 2}, "data.workers is 2, but the task 'formal' does not read it"),
        ({"data.tokenizer": "x.json"}, "data.tokenizer is 'x.json', but the task 'formal' does"),
        ({"task.formal.language": "latin"}, "task.formal.language is 'latin'; it must be one of"),
        ({"task.name": "formel"}, "task.name is 'formel'; it must be one of"),
        ({"task.name": "language_modelling", "task.formal.held_out_samples": 3}, "task.name is"),
    ],
)
def test_what_is_wrong_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        task_of(from_config_dict(default_config_dict(), SMALL | overrides)).check()
