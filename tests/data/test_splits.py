"""Mixtures, fixed subsets, several held-out sets, random tokens: what a run reads, and the record
of it.
"""

import collections
import dataclasses
import json

import numpy as np
import pytest

from xlstm_jax.config import load
from xlstm_jax.data import shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import (
    eval_batches,
    open_split,
    open_validation_sets,
    position,
    record,
    train_batches,
)
from xlstm_jax.data.splits import JoinedTokens, parse_mixture
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Prepared folders "a", all of whose text is a's, and "b"; each with a held-out split of its
    own.
    """
    for letter in "ab":
        shards.write_shards(
            tmp_path / letter, "train", ByteTokenizer(), [letter * 99] * 20, tokens_per_shard=500
        )
        shards.write_shards(tmp_path / letter, "validation", ByteTokenizer(), [letter * 50] * 3)
    return tmp_path


@pytest.fixture
def config(folders):
    return DataConfig(
        path=f"{folders}/a:0.7,{folders}/b:0.3",
        validation_path=f"{folders}/b",
        context_length=25,
        batch_size=10,
    )


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_a_mixture_is_drawn_by_weight_and_each_part_has_its_own_epochs(config):
    source = open_split(config, "train", 320)
    rows = np.concatenate([batch.tokens for batch in take(train_batches(source, config), 40)])
    letters = np.array([chr(row[row < 256][0]) for row in rows])
    assert abs((letters == "a").mean() - 0.7) < 0.01
    for first in range(0, 400, 20):  # evenly: any stretch of 20 samples has 14, give or take one
        assert abs((letters[first : first + 20] == "a").sum() - 14) <= 1
    # 80 windows of 25 in each epoch
    windows = collections.Counter(row.tobytes() for row in rows[letters == "a"][:160])
    assert set(windows.values()) <= {2, *(2 * k for k in range(1, 81))}, (
        "two epochs hold every window twice"
    )


@pytest.mark.parametrize("hosts", [1, 2, 5])
def test_a_mixture_is_the_same_on_any_number_of_hosts_and_after_resuming(config, hosts):
    source = open_split(config, "train", 320)
    expected = take(train_batches(source, config), 9)[6:]
    parts = [
        take(train_batches(source, config, 6, part=part, parts=hosts), 3) for part in range(hosts)
    ]
    for step, batch in enumerate(expected):
        np.testing.assert_array_equal(
            np.concatenate([part[step].tokens for part in parts]), batch.tokens
        )


def test_other_weights_are_other_data(config, folders):
    other = dataclasses.replace(config, path=f"{folders}/a:0.6,{folders}/b:0.4")
    assert position(open_split(config, "train", 320), config, 1) != position(
        open_split(other, "train", 320), other, 1
    )


def test_a_mixture_tells_its_shares(config):
    lines = open_split(config, "train", 320).description
    assert lines[0].startswith("70.0% of train: ") and lines[1].startswith("30.0% of train: ")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("a:2", [("a", 2.0)]),
        ("a:0.7,b:0.3", [("a", 0.7), ("b", 0.3)]),
        ("gs://x:1,b:1e-3", [("gs://x", 1.0), ("b", 0.001)]),
    ],
)
def test_the_form_of_a_mixture(path, parts):
    assert parse_mixture(path) == parts


@pytest.mark.parametrize(
    "path", ["a,b", "a:0.7,b", "a:0,b:1", "a:-1,b:1", "a:inf,b:1", "a:0.5,:0.5"]
)
def test_a_mixture_without_proper_weights_is_refused(path):
    with pytest.raises(UserError, match="each part must be"):
        parse_mixture(path)


def test_a_path_may_hold_a_comma(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert parse_mixture(str(tmp_path / "a,b")) == [(str(tmp_path / "a,b"), 1.0)]


def test_parts_with_different_tokenizers_are_refused(config, folders):
    path = folders / "b/train" / shards.MANIFEST
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "tokenizer": "gpt2", "tokenizer_hash": "0" * 64}
        )
    )
    with pytest.raises(UserError, match=r"is not the one that .*/b' was prepared with \('gpt2'"):
        open_split(config, "train", 320)


@pytest.mark.parametrize("limit", [26, 1000, 1234])
def test_a_subset_is_the_first_tokens(config, folders, limit):
    whole = dataclasses.replace(config, path=f"{folders}/a")
    part = dataclasses.replace(whole, max_tokens=limit)
    source = open_split(part, "train", 320)
    np.testing.assert_array_equal(
        source.tokens[:], open_split(whole, "train", 320).tokens[: limit + 1]
    )
    windows = limit // 25
    rows = np.concatenate(
        [
            batch.tokens
            for batch in take(
                train_batches(source, dataclasses.replace(part, batch_size=1)), windows
            )
        ]
    )
    np.testing.assert_array_equal(
        np.unique(rows, axis=0),
        np.unique(source.tokens[: 25 * windows].reshape(windows, 25), axis=0),
    )
    # the held-out tokens are all there
    assert len(open_split(part, "validation", 320).tokens) == 1 + 3 * 51


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"path": "{}/a", "max_tokens": 2001},
            "data.max_tokens is 2,001, but there are 2,000 tokens",
        ),
        ({"max_tokens": 5}, "can't limit the mixture"),
    ],
)
def test_a_subset_that_can_not_be_is_refused(config, folders, changes, message):
    changes = {
        key: value.format(folders) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        open_split(dataclasses.replace(config, **changes), "train", 320)


@pytest.mark.parametrize("size", ["125m", "350m", "760m", "1.3b", "2.7b"])
def test_the_papers_15b_runs_read_their_subset_once(size):
    config = load(f"configs/xlstm_{size}.py:7_1-15b")
    assert (
        config.data.max_tokens
        == config.train.steps * config.data.batch_size * config.data.context_length
    )
    assert abs(config.data.max_tokens - 14.77e9) < 1e7
    assert load("configs/xlstm_1.3b.py").data.max_tokens is None


def test_the_record_names_every_shard_and_how_much_of_it_is_used(config, folders):
    config = dataclasses.replace(config, path=f"{folders}/a", max_tokens=1234)
    source, held_out = open_split(config, "train", 320), open_split(config, "validation", 320)
    told = json.loads(record(source, {"validation": held_out}, config))
    manifest = shards.read_manifest(f"{folders}/a", "train")
    assert (
        told["train"]["tokens"]
        == told["train"]["max_tokens"]
        == sum(shard["used"] for shard in told["train"]["shards"])
        == 1234
    )
    assert [shard["sha256"] for shard in told["train"]["shards"]] == [
        shard.sha256 for shard in manifest.shards[:3]
    ]
    assert (told["train"]["seed"], told["train"]["context_length"]) == (0, 25)
    assert told["validation"]["tokens"] == 3 * 51 and told["validation"]["path"] == f"{folders}/b"


def test_a_mixtures_record_has_its_weights(config):
    told = json.loads(record(open_split(config, "train", 320), {}, config))
    assert [part["weight"] for part in told["train"]["mixture"]] == [0.7, 0.3]


def test_several_held_out_sets_by_name(config, folders):
    (folders / "more.txt").write_text("more text")
    config = dataclasses.replace(
        config, validation_sets=f"letters={folders}/a,more={folders}/more.txt"
    )
    sets = open_validation_sets(config, 320)
    assert list(sets) == ["letters", "more"]
    for name, text in (("letters", ("a" * 50 + "\n") * 3), ("more", "more text\n")):
        scored = np.concatenate(
            [batch.targets[batch.mask] for batch in eval_batches(sets[name], 2, 7)]
        )
        assert sets[name].tokenizer.decode(scored) == text
    assert open_validation_sets(dataclasses.replace(config, validation_sets=None), 320) == {}


@pytest.mark.parametrize("value", ["a", "a=", "=b", "train=b", "a=b,a=c"])
def test_held_out_sets_without_proper_names_are_refused(config, folders, value):
    (folders / "b.txt").write_text("b")
    with pytest.raises(UserError, match="data.validation_sets is"):
        open_validation_sets(
            dataclasses.replace(
                config,
                validation_sets=value.replace("=b", f"={folders}/b.txt")
                if value == "a=b,a=c"
                else value,
            ),
            320,
        )


def test_random_tokens_are_the_same_each_time_and_have_documents():
    config = DataConfig(path="synthetic", context_length=2048, batch_size=4)
    first, second = (
        next(train_batches(open_split(config, "train", 320), config)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.tokens.max() <= 256 and len(np.unique(first.tokens)) > 250
    assert 1 < first.segment_ids.max() < 40
    held_out = open_split(config, "validation", 320)
    assert (
        sum(int(batch.mask.sum()) for batch in eval_batches(held_out, 8, 1024))
        == len(held_out.tokens) - 1
    )


def test_random_tokens_repeat_across_the_end_of_their_block():
    tokens = open_split(DataConfig(path="synthetic"), "train", 320).tokens
    end = 1 << 22
    np.testing.assert_array_equal(
        tokens[end - 5 : end + 5], np.concatenate([tokens[end - 5 : end], tokens[:5]])
    )


def test_joined_streams_read_as_one():
    whole = np.arange(30)
    joined = JoinedTokens([whole[:7], whole[7:8], whole[8:]], 25)
    assert len(joined) == 25
    for start, stop in [(0, 25), (3, 9), (7, 8), (20, 30), (9, 9)]:
        np.testing.assert_array_equal(joined[start:stop], whole[:25][start:stop])
