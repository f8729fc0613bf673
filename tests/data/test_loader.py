"""Samples and batches: what is read, in which order, and where documents end."""

import contextlib
import dataclasses
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from xlstm_jax.data import loader, shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import (
    Batch,
    document_positions,
    eval_batches,
    make_batch,
    open_split,
    position,
    train_batches,
)
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
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
    assert (
        source.tokenizer.decode(source.tokens)
        == "\n" + TEXTS["19.txt"] + "\n" + TEXTS["39.txt"] + "\n"
    )


def test_ends_of_lines_are_text_like_any_other(tmp_path):
    """Those of Windows too: nothing is translated on the way to the tokens."""
    text = b"one\r\ntwo\rthree\n\r\n" * 3
    (tmp_path / "text.txt").write_bytes(text)
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("held out")
    config = DataConfig(path=str(tmp_path / "text.txt"), validation_path=str(held_out))
    source = open_split(config, "train", 320)
    assert bytes(source.tokens[1 : len(source.tokens) - 1].tolist()) == text


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
    expected = {
        source.tokens[16 * k : 16 * k + 16].astype(np.int32).tobytes() for k in range(windows)
    }
    assert set(rows[:windows]) == set(rows[windows:]) == expected
    assert rows[:windows] != rows[windows:]


@pytest.mark.parametrize("start", [1, 7, 60])  # 60 is in the second epoch
def test_resuming_needs_the_step_alone(config, start):
    source = open_split(config, "train", 320)
    undisturbed = take(train_batches(source, config), start + 3)[start:]
    for resumed, batch in zip(
        take(train_batches(source, config, start_step=start), 3), undisturbed, strict=True
    ):
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


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_reads_the_same_global_batches(config, hosts):
    config = dataclasses.replace(config, batch_size=8)
    source = open_split(config, "train", 320)
    parts = [
        take(train_batches(source, config, start_step=3, part=part, parts=hosts), 4)
        for part in range(hosts)
    ]
    for step, expected in enumerate(take(train_batches(source, config, start_step=3), 4)):
        for ours, theirs in zip(
            zip(*(part[step] for part in parts), strict=True), expected, strict=True
        ):
            np.testing.assert_array_equal(np.concatenate(ours), theirs)


def test_hosts_that_can_not_share_a_batch_are_refused(config):
    with pytest.raises(UserError, match="data.batch_size is 4, which 3 hosts can't share"):
        train_batches(open_split(config, "train", 320), config, parts=3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_any_number_of_reader_processes_gives_the_same_batches(config, tmp_path_factory, workers):
    """Of prepared shards: the processes open the files themselves."""
    folder = tmp_path_factory.mktemp("prepared")
    shards.write_shards(folder, "train", ByteTokenizer(), TEXTS.values(), tokens_per_shard=100)
    config = dataclasses.replace(config, path=str(folder))
    source = open_split(config, "train", 320)
    count = 20 if workers == 1 else 5
    ours = take(
        train_batches(source, dataclasses.replace(config, workers=workers), 2, part=1, parts=2),
        count,
    )
    for batch, expected in zip(
        ours, take(train_batches(source, config, 2, part=1, parts=2), count), strict=True
    ):
        for mine, theirs in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


NOTEBOOK = """
from xlstm_jax.config import load
from xlstm_jax.data.loader import open_split, train_batches
config = load("configs/quickstart.py", {"data.workers": 1, "data.path": "synthetic"})
batches = train_batches(open_split(config.data, "train", config.model.vocab_size), config.data)
print([int(next(batches).tokens.sum()) for _ in range(3)])
"""


@pytest.mark.slow
def test_reader_processes_work_without_a_main_module_and_without_parsed_flags():
    """As in a notebook: code that stands in no file."""
    config = DataConfig(path="synthetic")
    batches = train_batches(open_split(config, "train", 320), config)
    expected = [int(next(batches).tokens.sum()) for _ in range(3)]
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == f"{expected}\n", done.stderr


@pytest.mark.slow
def test_reader_processes_that_can_not_start_are_told_of(tmp_path):
    """They import the main script, which is no file here. The text is longer than a pipe holds:
    writing it to a dead process would never end.
    """
    (tmp_path / "text.txt").write_text("0123456789" * 20_000)
    script = NOTEBOOK.replace('"synthetic"', f'"{tmp_path}/text.txt"')
    done = subprocess.run(
        [sys.executable, "-"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "<stdin>" in done.stderr  # what the process said
    assert 'put what that does below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize("path", ["synthetic", "text"])
def test_what_a_reader_process_gets_is_smaller_than_a_pipe(config, path, tmp_path):
    """Tokens that lie in memory go by a file, which is gone when the batches are."""
    config = dataclasses.replace(config, path=path if path == "synthetic" else config.path)
    source = open_split(config, "train", 320)
    with contextlib.ExitStack() as files:
        sent = pickle.dumps(loader._in_files(source, files).tokens)
        tokens = pickle.loads(sent)
        assert len(sent) < 1000 and len(tokens) == len(source.tokens)
        np.testing.assert_array_equal(tokens[:90], source.tokens[:90])
    if path == "text":
        with pytest.raises(FileNotFoundError):
            pickle.loads(sent)[:90]


@pytest.mark.parametrize(("batch_size", "context_length"), [(1, 1), (1, 7), (3, 1)])
def test_the_smallest_batches_and_windows(config, batch_size, context_length):
    """Every token is an input once in an epoch, and its target is the next one."""
    source = open_split(config, "validation", 320)
    config = dataclasses.replace(config, batch_size=batch_size, context_length=context_length)
    windows = (len(source.tokens) - 1) // context_length
    batches = take(train_batches(source, config), windows // batch_size)
    rows = np.concatenate([batch.tokens for batch in batches])
    after = np.concatenate([batch.targets for batch in batches])
    pairs = np.lib.stride_tricks.sliding_window_view(source.tokens, 2)
    pairs = pairs[: windows * context_length]
    if windows % batch_size == 0:
        found = np.stack([rows.ravel(), after.ravel()], 1)
        np.testing.assert_array_equal(
            found[np.lexsort(found.T)], pairs[np.lexsort(pairs.T.astype(np.int32))]
        )
    scored = np.concatenate(
        [batch.targets[batch.mask] for batch in eval_batches(source, batch_size, context_length)]
    )
    np.testing.assert_array_equal(scored, source.tokens[1:])


def test_a_stream_of_just_one_sample(tmp_path):
    """Four letters, an end of text before and one behind them: one window of five."""
    (tmp_path / "a.txt").write_text("abcd")
    held = str(tmp_path / "a.txt")
    config = DataConfig(path=held, validation_path=held, context_length=5, batch_size=1)
    batches = take(train_batches(open_split(config, "train", 320), config), 3)
    for batch in batches:
        assert bytes(batch.targets[0][:4].tolist()) == b"abcd" and batch.targets[0][4] == 256


class Counted:
    """A stream that counts what is read of it."""

    def __init__(self, tokens):
        self.tokens, self.reads = tokens, 0

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, span):
        self.reads += 1
        return self.tokens[span]


def test_resuming_reads_nothing_again(config):
    source = open_split(config, "train", 320)
    counted = Counted(source.tokens)
    next(train_batches(dataclasses.replace(source, tokens=counted), config, start_step=10_000_000))
    assert counted.reads <= (loader.READ_AHEAD + 2) * config.batch_size


def test_the_position_is_a_few_numbers_and_other_data_have_others(config, tmp_path_factory):
    numbers = position(open_split(config, "train", 320), config, 7)
    trained_on = [text for name, text in TEXTS.items() if name not in ("19.txt", "39.txt")]
    assert numbers.pop("fingerprint") and numbers == {
        "next_sample": 28,
        "stream_tokens": 1 + sum(len(text) + 1 for text in trained_on),
    }
    folder = tmp_path_factory.mktemp("swapped")
    names = sorted(TEXTS)
    for name, text in zip(
        names, [TEXTS[name] for name in [names[1], names[0], *names[2:]]], strict=True
    ):
        (folder / name).write_text(text)
    swapped = dataclasses.replace(config, path=str(folder))
    before, after = (
        position(open_split(given, "train", 320), given, 7) for given in (config, swapped)
    )
    assert before["stream_tokens"] == after["stream_tokens"] and before != after


WINDOWS = np.array([[5, 9, 6, 7, 9, 8], [9, 9, 1, 1, 1, 1]], np.uint16)


def test_targets_are_the_next_tokens_and_documents_are_numbered():
    batch = make_batch(WINDOWS, end_of_text=9, reset_at_document=False)
    np.testing.assert_array_equal(batch.tokens, [[5, 9, 6, 7, 9], [9, 9, 1, 1, 1]])
    np.testing.assert_array_equal(batch.targets, [[9, 6, 7, 9, 8], [9, 1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.segment_ids, [[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]])
    assert batch.mask.all()
    assert [array.dtype for array in batch] == [np.int32] * 3


def test_with_resets_the_first_token_of_a_document_is_no_target():
    batch = make_batch(WINDOWS, end_of_text=9, reset_at_document=True)
    np.testing.assert_array_equal(batch.targets, [[9, -1, 7, 9, -1], [-1, -1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.mask, [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]])


def test_positions_count_from_the_beginning_of_each_document():
    segment_ids = make_batch(WINDOWS, end_of_text=9, reset_at_document=False).segment_ids
    np.testing.assert_array_equal(
        document_positions(segment_ids), [[0, 1, 0, 1, 2], [0, 0, 0, 1, 2]]
    )


@pytest.mark.parametrize("reset", [False, True])
def test_documents_decode_from_a_batch_by_their_segment_ids(config, reset):
    """What counts as a target of segment n is the text of the n-th document, from its second byte
    on where states are reset.
    """
    config = dataclasses.replace(config, context_length=150, batch_size=1, reset_at_document=reset)
    source = open_split(config, "train", 320)
    whole = source.text.decode()
    for batch in take(train_batches(source, config), 8):
        inside = 0
        for segment in range(1, batch.segment_ids.max()):  # the first and the last are cut off
            here = batch.segment_ids == segment
            text = source.tokenizer.decode(batch.tokens[here])
            assert text.endswith("\n") and text[:-1] in TEXTS.values() and text[:-1] in whole
            targets = source.tokenizer.decode(batch.targets[here & batch.mask])
            assert targets == (
                text[1:] if reset else text[1:] + source.tokenizer.decode(batch.targets[here][-1:])
            )
            inside += 1
        assert inside


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
    scored = np.concatenate(
        [batch.targets[batch.mask] for batch in eval_batches(source, 3, 7, max_tokens=25)]
    )
    np.testing.assert_array_equal(scored, source.tokens[1:26])


def test_the_embedded_corpus_is_the_standard_library():
    source = open_split(DataConfig(holdout_every=200), "validation", 320)
    assert "stdlib of Python 3." in source.description[0]
    assert 1.0 < source.gzip_bits_per_byte() < 4.0


BAD = {
    "missing": (
        {"path": "no/such/folder"},
        "no/such/folder.*does not exist.*xlstm_jax.data.prepare",
    ),
    "empty path": ({"path": ""}, "data.path is empty"),
    "empty folder": ({"path": "{empty}"}, "is empty"),
    "not text": ({"path": "{binary}"}, "is no text"),
    "no tokenizer": (
        {"tokenizer": "no/tokenizer.json"},
        "data.tokenizer 'no/tokenizer.json' does not exist",
    ),
    "bad tokenizer": ({"tokenizer": "{binary}"}, "no file of the `tokenizers` library"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(config, tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    (folder / "binary").write_bytes(b"\xff\xfe\x00text")
    changes, message = BAD[case]
    changes = {
        key: value.format(empty=folder / "empty", binary=folder / "binary")
        for key, value in changes.items()
    }
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
