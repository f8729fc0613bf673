"""Nearest neighbour search: answers found again by brute force, and the reference values of what
trivial predictors reach.
"""

import jax
import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks.nearest_neighbour import UNCOUNTED, sample


def search(**overrides):
    values = {"task.name": "nearest_neighbour", "data.context_length": 64, "data.batch_size": 16}
    values |= {f"task.nearest_neighbour.{key}": value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


def test_the_answer_is_the_value_of_the_most_similar_vector_so_far():
    for number in range(200):
        rng = np.random.default_rng(number)
        length = int(rng.integers(2, 65))
        tokens, answers, revisions = sample(rng, length)
        vectors, values = tokens[:, :2], tokens[:, 2]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
        assert values[0] == 0 and (values[1:] >= 0).all() and (values[1:] < 1).all()
        best, changes = [], 0
        for end in range(2, length + 1):
            distances = [np.sum((v - vectors[0]) ** 2) for v in vectors[1:end]]
            best.append(1 + int(np.argmin(distances)))
            changes += len(best) > 1 and best[-1] != best[-2]
            assert (answers[end - 2], revisions[end - 2]) == (values[best[-1]], changes)
        assert len(answers) == length - 1


@pytest.mark.parametrize(("length", "expected"), [(8, 1.6), (16, 2.3), (64, 3.7)])
def test_there_are_few_revisions(length, expected):
    """Reference values; exactly the harmonic numbers less 1."""
    found = [sample(np.random.default_rng(n), length)[2][-1] for n in range(2000)]
    assert np.mean(found) == pytest.approx(expected, abs=0.15)


def test_a_batch_is_padded_and_asks_for_every_token_but_the_first():
    task = search()
    batch = task.batch(2, 3, range(16))
    for row in range(16):
        asked = np.flatnonzero(batch.revisions[row] != UNCOUNTED)
        length = asked[-1] + 1
        assert asked.tolist() == list(range(1, length)) and 2 <= length <= 64
        assert (batch.inputs[row, length:] == 0).all() and batch.inputs[row, 0, 2] == 0
    last = search(asked="last").batch(2, 3, range(16))
    assert ((last.revisions != UNCOUNTED).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(last.inputs, batch.inputs)


def test_every_epoch_has_all_training_samples_in_another_order():
    task = search(train_samples=48)
    rows = [task.batch(0, step, range(16)).inputs.reshape(16, -1) for step in range(6)]
    epochs = np.concatenate(rows[:3]), np.concatenate(rows[3:])
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(*(np.unique(epoch, axis=0) for epoch in epochs))
    assert len(np.unique(epochs[0], axis=0)) == 48
    part = task.batch(0, 5, range(4, 8)).inputs.reshape(4, -1)
    np.testing.assert_array_equal(part, rows[5][4:8])


def test_trivial_predictors_have_the_known_errors():
    """Reference values: 1/12 for 0.5, 0.14 to 0.16 for the first value, 0.070 to 0.081 for the
    mean; at lengths of 2 to 64 a first neighbour that is the only one lowers the second.
    """
    fixed = search(lengths=(64, 64), asked="last").guesses()
    assert fixed["0.5"]["loss"] == pytest.approx(1 / 12, abs=0.005)
    assert fixed["the first neighbour's value"]["loss"] == pytest.approx(0.16, abs=0.015)
    assert fixed["the mean of the values so far"]["loss"] == pytest.approx(0.081, abs=0.006)
    found = search().guesses()
    assert 0.06 < found["the mean of the values so far"]["loss"] < 0.085


class Answers:
    """A model that knows the answers and is wrong by a tenth for each revision."""

    def __init__(self, batch):
        self.batch = batch

    def apply(self, variables, inputs, **_):
        return (self.batch.answers + 0.1 * self.batch.revisions)[..., None], None


def test_errors_are_told_by_the_number_of_revisions():
    task = search(held_out_samples=20)
    batch = task.batch(0, 0, range(64))
    sums = jax.jit(lambda: task.sums(Answers(batch), {}, batch))()
    found = task.summary({name: (float(a), float(b)) for name, (a, b) in sums.items()})
    for count in range(6):
        assert found[f"error_after_{count}"] == pytest.approx((0.1 * count) ** 2, abs=1e-6)
    asked = batch.revisions[batch.revisions >= 0]
    assert found["loss"] == pytest.approx(np.mean((0.1 * asked) ** 2), rel=1e-5)
    last = batch.revisions.max(axis=1)
    assert found["error_at_the_end"] == pytest.approx(np.mean((0.1 * last) ** 2), rel=1e-5)
    assert "error after" not in task.line(found)
    held_out = list(task.held_out()["validation"].batches(16))
    assert sum((b.revisions >= 0).any(axis=1).sum() for b in held_out) == 20
    assert (held_out[0].inputs != next(task.test_sets()["test"].batches(16)).inputs).any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lengths": (9, 3)}, "lengths is .*must not be the smaller"),
        ({"lengths": (2, 65)}, "data.context_length is 64, less than the longest sequence"),
        ({"asked": "first"}, "asked is 'first'; it must be one of 'every', 'last'"),
    ],
)
def test_what_is_wrong_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        search(**overrides).check()
