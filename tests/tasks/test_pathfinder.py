"""Pathfinder: which markers an image's label joins, that images are functions of their number, and
what reaches the model.
"""

import math

import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks import snakes


def pathfinder(**overrides):
    values = {"task.name": "pathfinder", "data.context_length": 1024, "data.batch_size": 4}
    values |= {"model.blocks": "mlp", "model.num_blocks": 1, "model.dim": 8}
    values |= {"task.pathfinder.train_samples": 8, "task.pathfinder.held_out_samples": 6}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


@pytest.fixture
def marked(monkeypatch):
    """The places of the markers, and those of both curves' ends, as images are made."""
    found, curves, marker = {"markers": []}, snakes._two_curves, snakes._marker

    def two_curves(rng):
        result = curves(rng)
        found["beginnings"], found["ends"], found["mask"] = result[2], list(result[3]), result[1]
        return result

    def mark(place):
        found["markers"].append(place)
        return marker(place)

    monkeypatch.setattr(snakes, "_two_curves", two_curves)
    monkeypatch.setattr(snakes, "_marker", mark)
    return found


def test_the_label_says_whether_the_markers_are_the_ends_of_one_curve(marked):
    labels = []
    for number in range(20):
        marked["markers"].clear()
        picture, label = snakes.image(np.random.default_rng(number))
        first, last = marked["markers"]
        curve_of_first = marked["beginnings"].index(first)
        assert (marked["ends"].index(last) == curve_of_first) == bool(label)
        apart = math.dist(*marked["beginnings"])
        assert apart == pytest.approx(snakes.SEEDS_APART, abs=math.sqrt(0.5))
        assert picture.shape == (32, 32) and picture.dtype == np.uint8
        assert (picture.min(), picture.max()) == (0, 255)
        labels.append(label)
    assert 4 <= sum(labels) <= 16


def test_curves_have_as_many_dashes_as_the_arenas():
    """Along a curve one dash and its space are 4 pixels: 14 of them go no farther than 56."""
    calls, extended = [], snakes._extended

    def counted(rng, mask, tip):
        result = extended(rng, mask, tip)
        calls.append((tip.pivot, result[2].pivot))
        return result

    rng = np.random.default_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snakes, "_extended", counted)
        for _ in range(300):
            calls.clear()
            try:
                snakes._two_curves(rng)
                break
            except snakes.Failed:
                continue
    assert len(calls) == 2 * 13  # after the first dash of each
    for before, after in calls:
        assert math.dist(before, after) < snakes.LENGTH + 2 * snakes.MARGIN + 1.5


def test_a_curve_goes_on_straight_more_often_than_it_turns():
    """The weight of a turn is its cosine squared; beyond a right angle it never turns."""
    mask, turns = np.zeros((32, 32)), []
    for number in range(300):
        tip = snakes.Tip((16, 16), 0.0, mask)
        _, _, new, _ = snakes._extended(np.random.default_rng(number), mask, tip)
        turns.append(abs(new.angle))
    assert max(turns) < np.pi / 2 + 1e-6
    assert np.mean(np.array(turns) < np.pi / 4) > 0.6


def test_dashes_do_not_run_into_what_is_occupied():
    full = np.ones((32, 32))
    with pytest.raises(snakes.Failed):
        snakes._extended(np.random.default_rng(0), full, snakes.Tip((16, 16), 0.0, full))
    with pytest.raises(snakes.Failed):
        snakes._begin(np.random.default_rng(0), full)


def test_single_dashes_fill_an_image():
    images = [snakes.image(np.random.default_rng(3), single)[0] for single in (False, True)]
    sparse, dense = ((image > 100).mean() for image in images)
    assert dense > 1.5 * sparse


def test_a_model_sees_grey_values_or_tokens():
    values, tokens = pathfinder(), pathfinder(task__pathfinder__input="tokens")
    seen, read = values.batch(0, 0, range(4)), tokens.batch(0, 0, range(4))
    assert seen.inputs.shape == (4, 1024, 1) and read.inputs.shape == (4, 1024)
    np.testing.assert_allclose(seen.inputs[..., 0], read.inputs / 127.5 - 1, rtol=1e-6)
    np.testing.assert_array_equal(seen.labels, read.labels)
    assert (seen.lengths == 1024).all()
    assert (values.shapes(4).inputs.shape, tokens.shapes(4).inputs.shape) == (
        (4, 1024, 1),
        (4, 1024),
    )
    again = values.batch(0, 0, range(1, 3))
    np.testing.assert_array_equal(again.inputs, seen.inputs[1:3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.context_length": 1000}, "data.context_length is 1000; the images .* 1024 pixels"),
        (
            {"task.pathfinder.input": "tokens", "model.vocab_size": 100},
            "model.vocab_size is 100; there are 256 grey values",
        ),
        ({"task.pathfinder.input": "bits"}, "input is 'bits'; it must be one of 'values', 'tok"),
    ],
)
def test_what_is_wrong_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        pathfinder(**{key.replace(".", "__"): value for key, value in overrides.items()}).check()
