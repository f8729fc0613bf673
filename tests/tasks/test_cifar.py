"""CIFAR-10 from small files of the archive's two formats, with what a person would see in them."""

import pickle

import numpy as np
import pytest
from PIL import Image

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import absolute
from xlstm_jax.tasks.cifar import TEST, TRAINING

PER_FILE = 4


def written(folder, version):
    """Six files of four random images; (pixels [24 3 32 32], labels)."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6 * PER_FILE, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 6 * PER_FILE)
    for number, name in enumerate((*TRAINING, TEST)):
        part = slice(number * PER_FILE, (number + 1) * PER_FILE)
        rows = pixels[part].reshape(PER_FILE, -1)
        if version == "binary":
            records = np.concatenate([labels[part, None].astype(np.uint8), rows], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": rows, b"labels": labels[part].tolist(), b"batch_label": b"x"}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return pixels, labels


def cifar(folder, **overrides):
    values = {"task.name": "cifar", "task.cifar.path": str(folder), "data.batch_size": 4}
    values |= {"data.context_length": 1024, "model.blocks": "mlp", "model.dim": 8}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


@pytest.mark.parametrize("version", ["binary", "python"])
def test_both_versions_give_every_image_once_with_its_class(tmp_path, version):
    pixels, labels = written(tmp_path, version)
    task = cifar(tmp_path, task__cifar__colours="rgb")
    task.check()
    assert [task.count(split) for split in ("train", "validation", "test")] == [18, 2, 4]
    means, deviations = [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]
    expected = (pixels.transpose(0, 2, 3, 1) / 255 - means) / deviations
    by_class = {}
    for split in ("train", "validation", "test"):
        for number in range(task.count(split)):
            sequence, label = task.sample(split, 0, number)
            (place,) = [i for i in range(24) if np.allclose(expected[i].reshape(-1, 3), sequence)]
            assert label == labels[place]
            assert (place >= 20) == (split == "test")
            by_class[place] = split
    assert len(by_class) == 24


def test_grey_is_what_pictures_have(tmp_path):
    pixels, _ = written(tmp_path, "binary")
    tokens = cifar(tmp_path, task__cifar__input="tokens")
    values = cifar(tmp_path)
    image = Image.fromarray(pixels[20].transpose(1, 2, 0)).convert("L")
    seen, _ = tokens.sample("test", 0, 0)
    assert abs(seen - np.asarray(image, int).ravel()).max() <= 1  # that one cuts off
    grey, _ = values.sample("test", 0, 0)
    np.testing.assert_allclose(grey[:, 0], (seen - 122.6) / 61.0, atol=0.5 / 61 + 1e-6)
    batch = next(values.test_sets()["test"].batches(3))
    assert batch.inputs.shape == (3, 1024, 1) and (batch.lengths == 1024).all()


def test_where_the_data_lie_means_the_same_from_everywhere(tmp_path, monkeypatch):
    written(tmp_path, "binary")
    monkeypatch.chdir(tmp_path.parent)
    values = {"task.name": "cifar", "task.cifar.path": tmp_path.name}
    config = absolute(from_config_dict(default_config_dict(), values))
    assert config.task.own.path == str(tmp_path)


def test_the_last_batch_is_filled_up_with_what_does_not_count(tmp_path):
    written(tmp_path, "binary")
    batches = list(cifar(tmp_path).test_sets()["test"].batches(3))
    assert [list(batch.labels >= 0) for batch in batches] == [[True] * 3, [True, False, False]]


def test_other_data_have_another_fingerprint(tmp_path):
    written(tmp_path, "binary")
    before = cifar(tmp_path).record()["train"]["fingerprint"]
    path = tmp_path / "data_batch_1.bin"
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 3073):
        content[place] = 9 - content[place]
    path.write_bytes(bytes(content))
    assert cifar(tmp_path).record()["train"]["fingerprint"] != before


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="has neither data_batch_1.bin nor data_batch_1; unpack"):
        cifar(tmp_path).check()
    written(tmp_path, "binary")
    path = tmp_path / "test_batch.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="test_batch.bin' has 12,291 bytes, no multiple of 3,073"):
        cifar(tmp_path).check()
    path.write_bytes(bytes([77]) + whole[1:])
    with pytest.raises(UserError, match="has the label 77, but CIFAR-10 has 10 classes"):
        cifar(tmp_path).check()


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    written(tmp_path, "python")

    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    (tmp_path / "test_batch").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UserError, match="test_batch' is damaged, or no file of CIFAR-10's Python"):
        cifar(tmp_path).check()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__context_length": 32}, "data.context_length is 32; the images .* 1024 pixels"),
        (
            {"task__cifar__input": "tokens", "task__cifar__colours": "rgb"},
            "input is 'tokens', which are grey values, but task.cifar.colours is 'rgb'",
        ),
        (
            {"task__cifar__input": "tokens", "model__vocab_size": 9},
            "model.vocab_size is 9; there are 256 grey values",
        ),
    ],
)
def test_what_can_not_be_is_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        cifar(tmp_path, **overrides).check()
