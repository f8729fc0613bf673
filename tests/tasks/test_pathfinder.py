"""Pathfinder: which markers an image's label joins, that images are functions of their number, and
what reaches the model.
"""

import math

import numpy as np
import pytest
from PIL import Image

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks import pathfinder_files, snakes


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


@pytest.fixture
def release(tmp_path):
    """A folder as the release has it, of 40 images in two lists, one of them empty."""
    folder, pixels = tmp_path / "pathfinder32" / "curv_contour_length_14", {}
    (folder / "metadata").mkdir(parents=True)
    for part in range(2):
        (folder / "imgs" / str(part)).mkdir(parents=True)
        lines = []
        for number in range(20):
            image, label = snakes.image(np.random.default_rng(20 * part + number))
            name = f"sample_{number}.png"
            Image.fromarray(image).save(folder / "imgs" / str(part) / name)
            lines.append(f"imgs/{part} {name} {number} {label} 1.0 1 0.75 14\n")
            pixels[image.tobytes()] = label
        (folder / "metadata" / f"{part}.npy").write_text("".join(lines))
    (folder / "imgs/0/sample_7.png").write_bytes(b"")
    return folder.parent, pixels


def of_release(folder, **overrides):
    return pathfinder(
        task__pathfinder__path=str(folder),
        task__pathfinder__train_samples=160_000,
        task__pathfinder__held_out_samples=3,
        task__pathfinder__input="tokens",
        model__vocab_size=256,
        **overrides,
    )


def test_the_releases_images_are_read_once_each_and_a_broken_one_is_counted(release):
    folder, known = release
    task = of_release(folder)
    task.check()
    counts = {split: task.count(split) for split in ("train", "validation", "test")}
    assert counts == {"train": 31, "validation": 3, "test": 4}  # of 39: 31, 4 and 4
    seen = {
        task.sample(split, 0, number)[0].astype(np.uint8).tobytes(): task.sample(split, 0, number)[
            1
        ]
        for split, count in counts.items()
        for number in range(count)
    }
    assert len(seen) == 38 and seen.items() <= known.items()
    assert task.description() == [
        "dashed curves, images of the release: 31 of train, 3 of validation, 4 of test",
        "left out as no images: 1 file, imgs/0/sample_7.png for one",
    ]
    values = pathfinder(task__pathfinder__path=str(folder)).batch(0, 0, range(4)).inputs
    assert (values.min(), values.max()) == (-1, 1)


def test_what_is_wrong_with_the_release_is_named(release, tmp_path):
    folder, _ = release
    with pytest.raises(UserError, match="has no curv_contour_length_14/metadata/.*pathfinder32"):
        of_release(tmp_path / "none").check()
    with pytest.raises(UserError, match="single_dashes is True, but the images of task.pathfinder"):
        of_release(folder, task__pathfinder__single_dashes=True).check()
    lines = folder / "curv_contour_length_14/metadata/1.npy"
    for damaged, message in (("imgs/1 sample_0.png 3 7\n", "no list of"), ("imgs/1", "no list of")):
        pathfinder_files.read.cache_clear()
        lines.write_text(damaged)
        with pytest.raises(UserError, match=f"1.npy' is damaged, or {message}"):
            of_release(folder).check()
    lines.unlink()
    pathfinder_files.read.cache_clear()
    other = folder / "curv_contour_length_14/imgs/0/sample_0.png"
    Image.new("L", (64, 64)).save(other)
    with pytest.raises(UserError, match="sample_0.png' has 64 x 64 pixels; those of the task have"):
        of_release(folder).check()
