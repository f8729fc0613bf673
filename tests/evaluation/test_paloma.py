"""PALOMA's layout, windows and sums, against the definition."""

import gzip
import json
import math

import jax
import numpy as np
import pytest

from tests.evaluation.conftest import logits_of, random_model
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.paloma import (
    _texts,
    by_source,
    check_paloma,
    evaluate_paloma,
    rolling_windows,
)
from xlstm_jax.evaluation.scoring import Scorer

TEXTS = {
    "c4_en/val/one": ["naïve text", "b"],
    "c4_en/val/two": ["another text of some length"],
    "ptb/val/all": ["short"],
}


@pytest.fixture
def folder(tmp_path):
    for name, texts in TEXTS.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps({"text": text, "source": "x"}) + "\n" for text in texts)
    return tmp_path


def test_windows_are_those_of_the_harness():
    pairs = rolling_windows(list(range(22)), 99, 8)
    # measured with lm-eval 0.4.13
    assert [(len(context), len(scored)) for context, scored in pairs] == [(1, 8), (1, 8), (3, 6)]
    assert (
        pairs[0][0] == [99]
        and pairs[1] == ([7], list(range(8, 16)))
        and pairs[2][0] == [13, 14, 15]
    )
    assert [token for _, scored in pairs for token in scored] == list(range(22))
    assert rolling_windows([1, 2], 99, 8) == [([99], [1, 2])] and rolling_windows([], 99, 8) == []


def nats(text: str) -> float:
    tokens = np.zeros((1, 32), np.int32)
    ids = [256, *text.encode()]
    tokens[0, : len(ids)] = ids
    logs = np.asarray(logits_of()(tokens))[0]
    return -sum(float(logs[at, ids[at + 1]]) for at in range(len(ids) - 1))


@pytest.mark.slow
def test_sums_per_file_and_source_weigh_tokens_alike(folder):
    domains = evaluate_paloma(Scorer(*random_model(), batch_size=4), ByteTokenizer(), str(folder))
    assert [(domain.source, domain.file) for domain in domains] == [
        ("c4_en", "one"),
        ("c4_en", "two"),
        ("ptb", "all"),
    ]
    for domain, texts in zip(domains, TEXTS.values(), strict=True):
        assert domain.nats == pytest.approx(sum(map(nats, texts)), rel=1e-4)
        assert domain.tokens == domain.bytes == sum(len(text.encode()) for text in texts)
        assert domain.documents == len(texts) and domain.words == sum(
            len(text.split()) for text in texts
        )
    c4, ptb = by_source(domains)
    all_texts = [*TEXTS["c4_en/val/one"], *TEXTS["c4_en/val/two"]]
    total = sum(map(nats, all_texts))
    count = sum(len(text.encode()) for text in all_texts)
    assert c4.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    assert c4.bits_per_byte == pytest.approx(total / count / math.log(2), rel=1e-4)
    assert ptb.documents == 1


@pytest.mark.slow
def test_with_64_bit_types_the_sums_are_the_same(folder):
    def nats_of_all():
        scorer = Scorer(*random_model(), batch_size=4)
        return [one.nats for one in evaluate_paloma(scorer, ByteTokenizer(), str(folder))]

    expected = nats_of_all()
    with jax.enable_x64(True):
        assert nats_of_all() == pytest.approx(expected, rel=1e-5)


def test_what_json_allows_is_read(tmp_path):
    """Empty lines and empty texts; texts that can't be UTF-8 are named."""
    path = tmp_path / "source" / "val" / "file.jsonl.gz"
    path.parent.mkdir(parents=True)
    lines = [
        json.dumps({"text": "one"}),
        "",
        json.dumps({"text": ""}),
        '{"text": "two"}',
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    assert list(_texts(path, None)) == ["one", "two"]
    assert list(_texts(path, 1)) == ["one"]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('{"text": "one"}\n{"text": "\\ud800"}\n')
    with pytest.raises(UserError, match="line 2: .*half a surrogate pair"):
        list(_texts(path, None))


def test_what_is_no_paloma_is_refused(folder, tmp_path):
    scorer = Scorer(*random_model(), batch_size=4)
    with pytest.raises(UserError, match="has no files"):
        evaluate_paloma(scorer, ByteTokenizer(), str(tmp_path / "ptb"))
    (folder / "ptb" / "val" / "all.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="all.jsonl.gz can't be read"):
        check_paloma(str(folder))  # of all files, before the first one is scored
