"""However long a document is and wherever its pieces end, its tokens are those of the whole."""

import numpy as np
import pytest

from tests.data.conftest import make_text
from xlstm_jax.data import encoding
from xlstm_jax.data.documents import Piece
from xlstm_jax.data.encoding import encode_pieces
from xlstm_jax.data.tokenizer import load_tokenizer

TEXTS = {
    "words": make_text(0, 3000),
    "no spaces": make_text(1, 3000).replace(" ", ""),
    "spaces": "a" + " " * 3000 + "b\n" * 200 + " \n" * 500,
    "numbers": "12345678901234567890, " * 300,
    "chinese": "东京都，中文。" * 700,
    "contractions": "don't it's we'll " * 300,
}


@pytest.fixture(params=["bpe", "byte"])
def tokenizer(request, bpe_file):
    return load_tokenizer("byte" if request.param == "byte" else str(bpe_file))


def encode(pieces, tokenizer):
    batches = list(encode_pieces(iter(pieces), tokenizer))
    return np.concatenate([batch.ids for batch in batches]), batches


def expected(texts, tokenizer):
    return np.concatenate([[*tokenizer.encode(text), tokenizer.end_of_text] for text in texts])


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("longest", [100, 1001, 1 << 20])
def test_parts_of_a_document_have_the_tokens_of_the_whole(monkeypatch, tokenizer, kind, longest):
    monkeypatch.setattr(encoding, "LONGEST", longest)
    text = TEXTS[kind]
    ids, batches = encode([Piece(text, True)], tokenizer)
    # no place to cut among 3,000 spaces: other tokens, the same text
    if kind == "spaces" and longest < 1 << 20:
        assert tokenizer.decode(ids[:-1]) == text
    else:
        np.testing.assert_array_equal(ids, expected([text], tokenizer))
    assert sum(batch.documents for batch in batches) == 1
    assert sum(batch.bytes for batch in batches) == len(text.encode())


@pytest.mark.parametrize("length", [1, 37, 1000])
def test_the_ends_of_pieces_change_nothing(monkeypatch, tokenizer, length):
    monkeypatch.setattr(encoding, "LONGEST", 500)
    monkeypatch.setattr(encoding, "BATCH", 700)
    pieces = []
    for text in TEXTS.values():
        if text != TEXTS["spaces"]:
            pieces += [Piece(text[k : k + length], False) for k in range(0, len(text), length)] + [
                Piece("", True)
            ]
    ids, batches = encode(pieces, tokenizer)
    np.testing.assert_array_equal(
        ids, expected([text for text in TEXTS.values() if text != TEXTS["spaces"]], tokenizer)
    )
    assert len(batches) > 10


def test_a_batch_is_cut_at_the_first_documents_end_that_has_enough_tokens():
    tokenizer = load_tokenizer("byte")
    [tokens] = encode_pieces(
        [Piece("abc", True), Piece("de", False), Piece("f", True), Piece("g", False)], tokenizer
    )
    for wanted, kept, documents in [(1, 4, 1), (4, 4, 1), (5, 8, 2), (8, 8, 2)]:
        part = tokens.up_to_document_end(wanted)
        assert (len(part.ids), part.documents, part.bytes) == (kept, documents, kept - documents)
    assert tokens.up_to_document_end(9) is None


def test_end_of_text_in_a_text_is_text(tokenizer):
    text = "he wrote <|endoftext|> and went on"
    ids, _ = encode([Piece(text, True)], tokenizer)
    assert list(ids).count(tokenizer.end_of_text) == 1 and ids[-1] == tokenizer.end_of_text
    assert tokenizer.decode(ids[:-1]) == text


def test_truncation_that_a_file_asks_for_does_not_happen(bpe_file):
    assert '"max_length": 50' in bpe_file.read_text()
    tokenizer = load_tokenizer(str(bpe_file))
    assert tokenizer.decode(tokenizer.encode(TEXTS["words"])) == TEXTS["words"]
