"""Samples and batches: what is read, in which order, and where documents end."""

import dataclasses

import numpy as np
import pytest

from xlstm_jax.config import DataConfig
from xlstm_jax.data.loader import Batch, eval_batches, make_sample, open_split, train_batches
from xlstm_jax.errors import UserError

TEXTS = {f"{k:02d}.txt": f"document {k} " * (3 + k % 5) for k in range(40)}


@pytest.fixture
def config(tmp_path) -> DataConfig:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return DataConfig(path=str(tmp_path), context_length=16, batch_size=4)


def take(batches, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def test_every_twentieth_file_is_held_out(config):
    train, validation = open_split(config, "train", 320), open_split(config, "validation", 320)
    assert (train.documents, validation.documents) == (38, 2)
    assert validation.text.decode() == TEXTS["19.txt"] + TEXTS["39.txt"]
    assert train.bytes + validation.bytes == sum(len(text) for text in TEXTS.values())


def test_the_stream_begins_with_an_end_of_text_and_each_document_ends_with_one(config):
    source = open_split(config, "validation", 320)
    assert source.tokens[0] == source.end_of_text == 256
    assert source.tokenizer.decode(source.tokens) == "\n" + TEXTS["19.txt"] + "\n" + TEXTS["39.txt"] + "\n"


def test_few_files_are_held_out_by_their_ends(tmp_path):
    (tmp_path / "one.txt").write_text("a" * 95 + "b" * 5)
    config = DataConfig(path=str(tmp_path / "one.txt"))
    assert open_split(config, "train", 320).text == b"a" * 95
    assert open_split(config, "validation", 320).text == b"b" * 5


def test_validation_path_holds_nothing_out(config, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "held.txt"
    other.write_text("held out")
    config = dataclasses.replace(config, validation_path=str(other))
    assert open_split(config, "train", 320).documents == 40
    assert open_split(config, "validation", 320).text == b"held out"


def test_an_epoch_is_every_window_once_and_the_next_has_another_order(config):
    source = open_split(config, "train", 320)
    windows = (len(source.tokens) - 1) // 16
    config = dataclasses.replace(config, batch_size=1)
    rows = [batch.tokens[0].tobytes() for batch in take(train_batches(source, config), 2 * windows)]
    expected = {source.tokens[16 * k : 16 * k + 16].astype(np.int32).tobytes() for k in range(windows)}
    assert set(rows[:windows]) == set(rows[windows:]) == expected
    assert rows[:windows] != rows[windows:]


@pytest.mark.parametrize("start", [1, 7, 60])  # 60 is in the second epoch
def test_resuming_needs_the_step_alone(config, start):
    source = open_split(config, "train", 320)
    undisturbed = take(train_batches(source, config), start + 3)[start:]
    for resumed, batch in zip(take(train_batches(source, config, start_step=start), 3), undisturbed, strict=True):
        for ours, theirs in zip(resumed, batch, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_batch_size_does_not_change_the_order_of_samples(config):
    source = open_split(config, "train", 320)
    fours = np.concatenate([batch.tokens for batch in take(train_batches(source, config), 3)])
    wide = next(train_batches(source, dataclasses.replace(config, batch_size=12)))
    np.testing.assert_array_equal(wide.tokens, fours)


def test_another_seed_is_another_order(config):
    source = open_split(config, "train", 320)
    other = next(train_batches(source, dataclasses.replace(config, seed=1)))
    assert not np.array_equal(other.tokens, next(train_batches(source, config)).tokens)


@pytest.mark.slow
def test_reader_processes_give_the_same_batches(config):
    source = open_split(config, "train", 320)
    ours = take(train_batches(source, dataclasses.replace(config, workers=1)), 3)
    for batch, expected in zip(ours, take(train_batches(source, config), 3), strict=True):
        np.testing.assert_array_equal(batch.tokens, expected.tokens)


def test_targets_are_the_next_tokens_and_documents_are_numbered():
    sample = make_sample(np.array([5, 9, 6, 7, 9, 8]), 5, end_of_text=9, reset_at_document=False)
    np.testing.assert_array_equal(sample.tokens, [5, 9, 6, 7, 9])
    np.testing.assert_array_equal(sample.targets, [9, 6, 7, 9, 8])
    np.testing.assert_array_equal(sample.segment_ids, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(sample.mask, [1, 1, 1, 1, 1])


def test_with_resets_the_first_token_of_a_document_is_no_target():
    sample = make_sample(np.array([5, 9, 6, 7, 9, 8]), 5, end_of_text=9, reset_at_document=True)
    np.testing.assert_array_equal(sample.mask, [1, 0, 1, 1, 0])


@pytest.mark.parametrize(("batch_size", "context_length"), [(1, 7), (3, 16), (8, 1000)])
def test_evaluation_scores_every_token_once_in_order(config, batch_size, context_length):
    source = open_split(config, "validation", 320)
    batches = list(eval_batches(source, batch_size, context_length))
    assert all(batch.tokens.shape == (batch_size, context_length) for batch in batches)
    scored = np.concatenate([batch.targets[batch.mask] for batch in batches])
    np.testing.assert_array_equal(scored, source.tokens[1:])
    for batch in batches:
        np.testing.assert_array_equal(batch.segment_ids == -1, ~batch.mask)


def test_evaluation_can_end_early(config):
    source = open_split(config, "validation", 320)
    scored = np.concatenate([batch.targets[batch.mask] for batch in eval_batches(source, 3, 7, max_tokens=25)])
    np.testing.assert_array_equal(scored, source.tokens[1:26])


def test_the_embedded_corpus_is_the_standard_library():
    source = open_split(DataConfig(holdout_every=200), "validation", 320)
    assert "stdlib of Python 3." in source.description[0]
    assert 1.0 < source.gzip_bits_per_byte() < 4.0


BAD = {
    "missing": ({"path": "no/such/folder"}, "no/such/folder.*does not exist.*xlstm_jax.data.prepare"),
    "empty path": ({"path": ""}, "data.path is empty"),
    "empty folder": ({"path": "{empty}"}, "is empty"),
    "not text": ({"path": "{binary}"}, "is no text"),
    "no tokenizer": ({"tokenizer": "no/tokenizer.json"}, "data.tokenizer 'no/tokenizer.json' does not exist"),
    "bad tokenizer": ({"tokenizer": "{binary}"}, "no file of the `tokenizers` library"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(config, tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "binary").write_bytes(b"\xff\xfe\x00text")
    changes, message = BAD[case]
    changes = {key: value.format(empty=folder / "empty", binary=folder / "binary") for key, value in changes.items()}
    with pytest.raises(UserError, match=message):
        open_split(dataclasses.replace(config, **changes), "train", 320)


def test_a_vocabulary_that_is_too_small_is_refused(config):
    with pytest.raises(UserError, match="257 ids, but model.vocab_size is 256"):
        open_split(config, "train", 256)


def test_a_stream_shorter_than_one_sample_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    config = DataConfig(path=str(tmp_path))
    with pytest.raises(UserError, match="less than one sample"):
        train_batches(open_split(config, "train", 320), config)
