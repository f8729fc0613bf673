"""Retrieval from small files of the release's format, and a model of pairs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig
from xlstm_jax.models.classifier import Classifier
from xlstm_jax.tasks.retrieval import END, FIRST, UNKNOWN

LINES = {
    "train": ["1.0\ta\tb\tabab é\tba", "0.0\tc\td\taab\tabba\t"[:-1]],
    "eval": ["1\ta\tb\tab\tzz"],
    "test": ["0\ta\tb\tab\tab", "1\ta\tb\tb\ta", "0\tc\td\ta\tb"],
}


def retrieval(folder, **overrides):
    values = {"task.name": "retrieval", "task.retrieval.path": str(folder)}
    values |= {"data.context_length": 6, "data.batch_size": 2, "task.retrieval.least_count": 2}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


@pytest.fixture
def folder(tmp_path):
    for name, lines in LINES.items():
        (tmp_path / f"new_aan_pairs.{name}.tsv").write_text("\n".join(lines))
    return tmp_path


def test_texts_are_characters_of_the_training_data_with_an_end(folder):
    task = retrieval(folder)
    task.check()
    assert list(task.characters) == ["a", "b"]  # "é" and " " are there once
    a, b = task.characters["a"], task.characters["b"]
    (first, second), label = task.sample("train", 0, 0)
    assert label == 1
    assert first.tolist() == [a, b, a, b, UNKNOWN, END]  # cut off where the context ends
    assert second.tolist() == [b, a, END]
    (_, unknown), _ = task.sample("validation", 0, 0)
    assert unknown.tolist() == [UNKNOWN, UNKNOWN, END]


def test_texts_are_bytes_where_they_are_asked_for(folder):
    task = retrieval(folder, task__retrieval__input="bytes", data__context_length=16)
    (first, _), _ = task.sample("train", 0, 0)
    assert bytes((first[:-1] - FIRST).tolist()).decode() == "abab é" and first[-1] == END


def test_batches_have_pairs_and_the_last_one_is_filled_up(folder):
    task = retrieval(folder)
    assert [task.count(split) for split in ("train", "validation", "test")] == [2, 1, 3]
    batches = list(task.test_sets()["test"].batches(2))
    assert [batch.labels.tolist() for batch in batches] == [[0, 1], [0, -1]]
    first = batches[0]
    assert first.inputs.shape == (2, 6, 2) and first.lengths.tolist() == [[3, 3], [2, 2]]
    assert (first.inputs[1, 2:] == 0).all()
    assert len(task.record()["train"]["fingerprint"]) == 64


def test_a_pairs_class_sees_both_texts_and_their_order():
    config = ModelConfig(blocks="mlp", num_blocks=1, dim=8, vocab_size=9)
    model = Classifier(config, 2, True, pairs=True)
    texts = np.random.default_rng(0).integers(1, 9, (3, 5, 2))
    lengths = np.array([[5, 3], [4, 4], [1, 5]])

    @jax.jit
    def logits(texts, lengths):
        variables = nn.unbox(model.init(jax.random.key(0), texts, lengths))
        return model.apply(variables, texts, lengths)

    found = logits(texts, lengths)
    assert found.shape == (3, 2)
    swapped = logits(texts[..., ::-1], lengths[:, ::-1])
    assert (jnp.abs(found - swapped) > 1e-6).any()
    beyond = np.where(np.arange(5)[None, :, None] < lengths[:, None], texts, 7)
    np.testing.assert_allclose(logits(beyond, lengths), found, rtol=1e-6)


def test_what_is_missing_or_damaged_is_named(tmp_path, folder):
    with pytest.raises(UserError, match="train.tsv' does not exist; the Long Range Arena's"):
        retrieval(tmp_path / "nothing").check()
    with pytest.raises(UserError, match="model.vocab_size is 4; the texts have 2 different char"):
        retrieval(folder, model__vocab_size=4).check()
    path = folder / "new_aan_pairs.eval.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(UserError, match="eval.tsv', line 1: it has 2 fields, the first b'a'"):
        retrieval(folder).check()
    path.write_text("")
    with pytest.raises(UserError, match="eval.tsv' is empty; fetch it again"):
        retrieval(folder).check()
