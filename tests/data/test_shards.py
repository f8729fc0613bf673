"""Prepared token shards and tokenizer files."""

import dataclasses
import json
import time

import numpy as np
import pytest
import tokenizers

from xlstm_jax.config import DataConfig
from xlstm_jax.data import shards
from xlstm_jax.data.loader import eval_batches, open_split
from xlstm_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError

TEXTS = ["first text", "zweiter Text, mit ä", "third"]


@pytest.fixture
def folder(tmp_path):
    """A prepared folder with three shards for training and one for validation."""
    shards.write_shards(tmp_path, "train", ByteTokenizer(), TEXTS, tokens_per_shard=8)
    shards.write_shards(tmp_path, "validation", ByteTokenizer(), TEXTS[:1])
    return tmp_path


def test_a_stream_reads_across_shards(folder):
    source = open_split(DataConfig(path=str(folder)), "train", 320)
    manifest = shards.read_manifest(str(folder), "train")
    assert len(manifest.shards) == 3
    assert source.tokenizer.decode(source.tokens[:]) == "\n" + "\n".join(TEXTS) + "\n"
    whole = source.tokens[:]
    for start, stop in [(0, 5), (9, 30), (3, len(whole)), (12, 12)]:
        np.testing.assert_array_equal(source.tokens[start:stop], whole[start:stop])
    assert (source.documents, source.bytes) == (3, sum(len(text.encode()) for text in TEXTS))


def test_evaluation_of_shards_scores_every_token(folder):
    source = open_split(DataConfig(path=str(folder)), "validation", 320)
    scored = np.concatenate([batch.targets[batch.mask] for batch in eval_batches(source, 2, 4)])
    assert source.tokenizer.decode(scored) == TEXTS[0] + "\n"
    assert source.gzip_bits_per_byte() is None


def test_a_prepared_split_is_not_overwritten(folder):
    with pytest.raises(UserError, match="holds a prepared corpus already"):
        shards.write_shards(folder, "train", ByteTokenizer(), ["other"])


def alter(folder, shard):
    """Changes two bytes in a shard's middle; returns its name."""
    path = folder / "train" / shards.read_manifest(str(folder), "train").shards[shard].file
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    content[middle + 1] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_an_altered_shard_is_found_when_the_split_is_opened(folder, shard):
    name = alter(folder, shard)
    assert shards.verify(str(folder), shards.read_manifest(str(folder), "train")) == [name]
    with pytest.raises(UserError, match=f"{name} is damaged: its content is not what was prepared"):
        open_split(DataConfig(path=str(folder)), "train", 320)


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_of_a_large_split_the_shards_written_last_are_hashed(folder, shard, monkeypatch):
    manifest = shards.read_manifest(str(folder), "train")
    sizes = [2 * entry.tokens for entry in manifest.shards]
    time.sleep(0.02)  # file systems keep times to some milliseconds
    name = alter(folder, shard)
    hashed = []
    monkeypatch.setattr(shards, "_hash", lambda path: hashed.append(path.name))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        shards.open_shards(str(folder), manifest, hashed=sizes[shard])
    assert hashed == [name]
    shards.open_shards(str(folder), manifest, hashed=0)


def test_a_shard_of_another_size_is_found_however_large_the_split(folder):
    manifest = shards.read_manifest(str(folder), "train")
    path = folder / "train" / manifest.shards[1].file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{path.name}.*bytes"):
        shards.open_shards(str(folder), manifest, hashed=0)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        shards.open_shards(str(folder), manifest, hashed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"tokens": 0, "shards": []}, "no tokens"),
        ({"tokens": 7}, "damaged .tokens is 7, its shards have 38"),
        ({"shards": None}, "damaged"),
        ({"dtype": "float99"}, "damaged .dtype is 'float99'"),
        ({"end_of_text": 70000}, "damaged .end_of_text 70000"),
    ],
)
def test_a_bad_manifest_is_named(folder, change, message):
    path = folder / "train" / shards.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        open_split(DataConfig(path=str(folder)), "train", 320)


def test_the_folder_of_one_split_is_not_taken_for_text(folder):
    with pytest.raises(
        UserError, match="is one split of a prepared corpus; give the folder above it"
    ):
        open_split(DataConfig(path=str(folder / "train")), "train", 320)


def test_another_tokenizer_than_the_manifest_names_is_refused(folder):
    manifest = shards.read_manifest(str(folder), "train")
    other = dataclasses.replace(manifest, tokenizer="gpt2", tokenizer_hash="0" * 64)
    (folder / "train" / shards.MANIFEST).write_text(json.dumps(dataclasses.asdict(other)))
    with pytest.raises(UserError, match="is not the one that .* was prepared with \\('gpt2'"):
        open_split(DataConfig(path=str(folder)), "train", 320)


def test_a_tokenizer_file_replaces_the_bytes(tmp_path):
    words = {"hello": 0, "world": 1, "[UNK]": 2, "<|endoftext|>": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path / "words.json"
    tokenizer.save(str(path))
    loaded = load_tokenizer(str(path))
    assert (loaded.vocab_size, loaded.end_of_text) == (4, 3)
    text = tmp_path / "text.txt"
    text.write_text("hello world hello " * 20)
    source = open_split(DataConfig(path=str(text), tokenizer=str(path)), "train", 4)
    np.testing.assert_array_equal(source.tokens[:4], [3, 0, 1, 0])
    with pytest.raises(UserError, match="4 ids, but model.vocab_size is 3"):
        open_split(DataConfig(path=str(text), tokenizer=str(path)), "train", 3)


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(
        str(tmp_path / "t.json")
    )
    with pytest.raises(UserError, match="has no token '<|endoftext|>'".replace("|", "\\|")):
        load_tokenizer(str(tmp_path / "t.json"))


def test_bytes_go_there_and_back():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("äöü €")) == "äöü €"
