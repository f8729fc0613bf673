"""What a model is trained on is what was asked for: old and new files are not mixed, training and
held-out text neither, and a folder that is no text is not read as text.
"""

import dataclasses
import json
import os

import numpy as np
import pytest

from tests.data.conftest import write_documents
from xlstm_jax.data import plan, prepare, shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import eval_batches, open_split
from xlstm_jax.data.prepare import install_tokenizer, prepare_split
from xlstm_jax.data.sources import Layout
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError


@pytest.fixture
def source(tmp_path):
    for number in range(6):
        write_documents(tmp_path / f"in/{number}.jsonl", [f"text {number}"])
    return tmp_path / "in"


def prepared(source, output, split="train", **options):
    tokenizer = install_tokenizer("byte", output)
    return prepare_split(str(source), split, tokenizer, output, job_bytes=1, **options)


def run(source, output, *more):
    argv = ["prepare", f"--source={source}", "--tokenizer=byte", f"--output={output}"]
    return prepare.main([*argv, "--workers=1", *more])


def interrupted(source, output, monkeypatch, after=3):
    """A preparation that ends when so many jobs were handed out."""
    submit, calls = prepare.Workers.submit, []

    def failing(self, number, *rest):
        calls.append(number)
        if len(calls) > after:
            raise KeyboardInterrupt
        future = submit(self, number, *rest)
        future.result()
        return future

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Workers, "submit", failing)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, output)


def same_size(path):
    """Another text of the same length, as an editor or a repaired download leaves it."""
    path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))


def same_size_and_time(path):
    status = path.stat()
    same_size(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "a finished file, same size": (lambda folder: same_size(folder / "1.jsonl"), "1.jsonl' has"),
    "a finished file, same size and time": (
        lambda folder: same_size_and_time(folder / "1.jsonl"),
        "1.jsonl' has changed since",
    ),
    "a file to come, same size": (lambda folder: same_size(folder / "5.jsonl"), "5.jsonl' has"),
    "a file to come, another size": (
        lambda folder: write_documents(folder / "5.jsonl", ["longer text"]),
        "5.jsonl' has changed since",
    ),
    "a new file": (
        lambda folder: write_documents(folder / "7.jsonl", ["new"]),
        "has changed since .*: '7.jsonl' is new",
    ),
    "a file gone": (lambda folder: (folder / "0.jsonl").unlink(), "'0.jsonl' is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_during_an_interruption_is_refused(
    source, tmp_path, monkeypatch, change
):
    interrupted(source, tmp_path / "out", monkeypatch)
    do, message = CHANGES[change]
    do(source)
    with pytest.raises(UserError, match=message):
        prepared(source, tmp_path / "out")


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_after_it_was_prepared_is_refused(source, tmp_path, change):
    prepared(source, tmp_path / "out")
    do, message = CHANGES[change]
    do(source)
    with pytest.raises(UserError, match=message.replace("1.jsonl' has changed since", "1.jsonl'")):
        prepared(source, tmp_path / "out")


def test_a_finished_file_that_was_copied_anew_is_the_same(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch)
    content = (source / "0.jsonl").read_bytes()
    (source / "0.jsonl").unlink()
    (source / "0.jsonl").write_bytes(content)
    assert prepared(source, tmp_path / "out").documents == 6


def test_a_file_of_the_same_moment_is_read_again(source):
    """File systems tell times to some milliseconds: a later change may have the same time."""
    status = (source / "0.jsonl").stat()
    assert plan._written_since(source / "0.jsonl", None, status.st_ctime_ns)
    assert not plan._written_since(source / "0.jsonl", None, status.st_ctime_ns + 1)
    assert plan._written_since(source / "0.jsonl", status.st_mtime_ns - 1, status.st_ctime_ns + 1)


def test_what_is_prepared_needs_its_source_no_more(source, tmp_path, capsys):
    prepared(source, tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    prepared(source, tmp_path / "out")
    assert "is gone and was not compared" in " ".join(capsys.readouterr().out.split())


def test_files_behind_a_limit_may_change(source, tmp_path):
    prepared(source, tmp_path / "out", max_tokens=10)
    same_size(source / "5.jsonl")
    prepared(source, tmp_path / "out", max_tokens=10)


def test_the_manifest_knows_what_was_read(source, tmp_path):
    import hashlib

    manifest = prepared(source, tmp_path / "out")
    for entry in manifest.inputs:
        assert entry.sha256 == hashlib.sha256((source / entry.file).read_bytes()).hexdigest()


def test_no_file_is_in_two_splits(source, tmp_path, capsys):
    assert run(source, tmp_path / "out", "--split=train") == 0
    for spelled in (source, source / ".." / "in"):
        more = ("--split=validation", "--holdout-every=3")
        assert run(spelled, tmp_path / "out", *more) == 2
        assert "would be in the splits 'train' and 'validation'" in capsys.readouterr().err
    assert run(source / "0.jsonl", tmp_path / "two", "--split=train,validation") == 2
    assert "would be in the splits" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_two_files_serve_two_splits(source, tmp_path):
    assert run(source / "0.jsonl", tmp_path / "out", "--split=train") == 0
    assert run(source / "1.jsonl", tmp_path / "out", "--split=validation") == 0


def test_held_out_files_are_not_dealt_out_again(tmp_path):
    for name in ("train/a", "train/b", "valid/c"):
        write_documents(tmp_path / f"in/{name}.jsonl", [name])
    with pytest.raises(UserError, match="--holdout-every=2 would mix the validation files"):
        prepared(tmp_path / "in", tmp_path / "out", layout=Layout(holdout_every=2))


def test_the_files_that_name_training_are_dealt_out_where_none_is_for_validation(tmp_path):
    for name in ("train/a", "train/b", "train/c", "test/d", "e"):
        write_documents(tmp_path / f"in/{name}.jsonl", [name])
    layout = Layout(holdout_every=3)
    names = {}
    for split in ("train", "validation"):
        manifest = prepared(tmp_path / "in", tmp_path / "out", split, layout=layout)
        names[split] = [entry.file for entry in manifest.inputs]
    assert names == {"train": ["train/a.jsonl", "train/b.jsonl"], "validation": ["train/c.jsonl"]}


def test_the_output_is_no_source(source, tmp_path, capsys):
    assert run(source, source / "out", "--holdout-every=3") == 0
    assert run(source, source / "out", "--holdout-every=3") == 0
    assert shards.read_manifest(str(source / "out"), "train").documents == 4
    assert run(source, source, "--split=train") == 2
    assert "would write into the source" in capsys.readouterr().err


def test_an_unfinished_preparation_is_no_folder_of_text(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch)
    with pytest.raises(UserError, match="the preparation of 'train' is not finished"):
        open_split(DataConfig(path=str(tmp_path / "out")), "train", 320)


def test_prepared_folders_below_a_path_are_no_text(source, tmp_path):
    prepared(source, tmp_path / "data/out")
    with pytest.raises(UserError, match="'out/train/tokens-00000.bin' in it is a shard"):
        open_split(DataConfig(path=str(tmp_path / "data")), "train", 320)


@pytest.fixture
def mixture(tmp_path):
    """Of "a" there are 3,000 held-out tokens, of "b" 600."""
    for letter, count in (("a", 100), ("b", 20)):
        shards.write_shards(tmp_path / letter, "train", ByteTokenizer(), [letter * 99] * 20)
        texts = [f"{letter * 26}{k:03}" for k in range(count)]
        shards.write_shards(tmp_path / letter, "validation", ByteTokenizer(), texts)
    return DataConfig(path=f"{tmp_path}/a:0.7,{tmp_path}/b:0.3")


def test_of_a_mixture_every_held_out_document_is_scored_once(mixture):
    source = open_split(mixture, "validation", 320)
    scored = [batch.targets[batch.mask] for batch in eval_batches(source, 3, 16)]
    texts = source.tokenizer.decode(np.concatenate(scored)).splitlines()
    expected = [f"{'a' * 26}{k:03}" for k in range(100)] + [f"{'b' * 26}{k:03}" for k in range(20)]
    assert sorted(texts) == expected
    for letter in "ab":  # each part in its order
        assert [text for text in texts if text[0] == letter] == [
            text for text in expected if text[0] == letter
        ]
    assert (source.documents, source.bytes, len(source.tokens)) == (120, 120 * 29, 3601)
    first, second = source.tokens[:2]
    assert first == source.end_of_text != second


@pytest.mark.parametrize("wanted", [400, 1000, 1900])
def test_any_beginning_of_it_has_the_parts_by_weight(mixture, wanted):
    source = open_split(mixture, "validation", 320)
    scored = [batch.targets[batch.mask] for batch in eval_batches(source, 3, 16, wanted)]
    ids = np.concatenate(scored)
    np.testing.assert_array_equal(ids, source.tokens[1 : wanted + 1])
    count = {letter: (ids == ord(letter)).sum() for letter in "ab"}
    share = count["a"] / (count["a"] + count["b"])
    # a stretch has at most an eighth of what was taken of its part, and a document
    assert abs(share - 0.7) <= 1 / 8 + 94 / wanted


def test_a_mixture_of_texts_holds_a_part_of_each_out(tmp_path):
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter * 90 + letter.upper() * 10)
    config = DataConfig(path=f"{tmp_path}/a.txt:0.7,{tmp_path}/b.txt:0.3", holdout_every=10)
    held_out, train = (open_split(config, split, 320) for split in ("validation", "train"))
    assert held_out.tokenizer.decode(held_out.tokens[1:]) == "A" * 10 + "\n" + "B" * 10 + "\n"
    assert [part.text for _, part in train.parts] == [b"a" * 90, b"b" * 90]


def test_held_out_texts_may_be_a_mixture_themselves(mixture, tmp_path):
    config = dataclasses.replace(mixture, validation_path=mixture.path, path=f"{tmp_path}/a")
    assert open_split(config, "validation", 320).documents == 120


def test_a_part_without_held_out_text_is_named(mixture, tmp_path):
    (tmp_path / "b/validation/manifest.json").unlink()
    with pytest.raises(UserError, match=r"/b' has no split 'validation'.*data.validation_path"):
        open_split(mixture, "validation", 320)


def test_other_ends_of_text_than_the_manifests_are_refused(mixture, tmp_path):
    path = tmp_path / "a/train/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "end_of_text": 3}))
    with pytest.raises(UserError, match="was prepared with 3 as the token that ends a text"):
        open_split(dataclasses.replace(mixture, path=f"{tmp_path}/a"), "train", 320)
