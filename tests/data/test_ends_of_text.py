"""Which token ends a text, and that no other place in a text has it: it tells documents apart."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tests.data.conftest import make_text, write_documents
from xlstm_jax.config import DataConfig
from xlstm_jax.data import prepare, shards
from xlstm_jax.data.documents import Piece
from xlstm_jax.data.encoding import encode_pieces
from xlstm_jax.data.loader import open_split
from xlstm_jax.data.tokenizer import END_OF_TEXT, load_tokenizer
from xlstm_jax.errors import UserError

NAMES = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
]


def byte_level(path, added, *, dropout=None, unknown=None, special=True):
    """A byte-level BPE of single bytes, the merge "th", and added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "th"])}
    if unknown:
        vocabulary[unknown] = len(vocabulary)
    model = models.BPE(vocabulary, [("t", "h")], dropout=dropout, unk_token=unknown)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, special=special) for name in added])
    if special:
        tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(path))
    return path


def run(source, tokenizer, output, *more):
    argv = ["prepare", f"--source={source}", f"--tokenizer={tokenizer}", f"--output={output}"]
    return prepare.main([*argv, "--workers=1", "--split=train", *more])


@pytest.fixture
def source(tmp_path):
    return write_documents(tmp_path / "in.jsonl", ["this </s> is", "that"])


@pytest.mark.parametrize("name", NAMES)
def test_the_ends_of_text_of_known_tokenizers_are_found(tmp_path, name):
    loaded = load_tokenizer(str(byte_level(tmp_path / "t.json", ["<pad>", name])))
    assert (loaded.end_of_text, loaded.end_of_text_token) == (258, name)
    text = f"the text {name} goes on"
    assert (
        loaded.end_of_text not in loaded.encode(text) and loaded.decode(loaded.encode(text)) == text
    )


def test_the_name_of_gpt2_comes_first(tmp_path):
    loaded = load_tokenizer(str(byte_level(tmp_path / "t.json", ["</s>", END_OF_TEXT])))
    assert loaded.end_of_text_token == END_OF_TEXT


def test_without_a_known_end_the_flag_is_named(tmp_path):
    path = byte_level(tmp_path / "t.json", ["<pad>", "[SEP]"])
    message = r"--end-of-text=TOKEN.*its special tokens are '<pad>', '\[SEP\]'"
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(path))


def test_a_chosen_end_of_text_stays_with_the_folder(tmp_path, source, capsys):
    path, output = byte_level(tmp_path / "t.json", ["</s>", "[SEP]"]), tmp_path / "out"
    assert run(source, path, output, "--end-of-text=[SEP]") == 0
    installed = output / "tokenizer.json"
    loaded = load_tokenizer(str(installed))
    assert loaded.end_of_text_token == "[SEP]" and load_tokenizer(str(path)).end_of_text == 257
    manifest = shards.read_manifest(str(output), "train")
    assert (manifest.end_of_text, manifest.end_of_text_token) == (258, "[SEP]")
    config = DataConfig(path=str(output), tokenizer=str(installed))
    tokens = open_split(config, "train", 300).tokens[:]
    assert loaded.decode(tokens) == "[SEP]this </s> is[SEP]that[SEP]"
    assert run(source, path, output, "--end-of-text=[SEP]") == 0  # complete already
    assert run(source, path, output) == 2
    assert "another --end-of-text" in capsys.readouterr().err
    # whoever copies the file has the choice
    (tmp_path / "copy.json").write_bytes(installed.read_bytes())
    assert load_tokenizer(str(tmp_path / "copy.json")).end_of_text_token == "[SEP]"


def test_the_flag_leaves_a_file_as_it_is_where_it_says_nothing_new(tmp_path, source):
    path = byte_level(tmp_path / "t.json", ["</s>"])
    assert run(source, path, tmp_path / "out", "--end-of-text=</s>") == 0
    assert (tmp_path / "out/tokenizer.json").read_bytes() == path.read_bytes()


def test_a_token_of_the_vocabulary_alone_can_be_chosen(tmp_path, source):
    path = byte_level(tmp_path / "t.json", [])
    assert run(source, path, tmp_path / "out", "--end-of-text=th") == 0
    loaded = load_tokenizer(str(tmp_path / "out/tokenizer.json"))
    ids = loaded.encode("the th this")
    assert loaded.end_of_text == 256 not in ids and loaded.decode(ids) == "the th this"


@pytest.mark.parametrize(
    ("tokenizer", "message"), [("t.json", "no token '<x>'"), ("byte", "bytes have")]
)
def test_an_end_of_text_that_is_not_there_is_refused(tmp_path, source, capsys, tokenizer, message):
    path = byte_level(tmp_path / "t.json", ["</s>"])
    given = path if tokenizer == "t.json" else tokenizer
    assert run(source, given, tmp_path / "out", "--end-of-text=<x>") == 2
    assert message in capsys.readouterr().err


def test_words_of_an_added_token_that_is_not_special_are_text(tmp_path):
    path = byte_level(tmp_path / "t.json", [END_OF_TEXT], special=False)
    loaded = load_tokenizer(str(path))
    ids = loaded.encode_batch(["see <|endoftext|> here", "b"], [True, True])
    assert list(ids).count(loaded.end_of_text) == 2
    assert loaded.decode(ids) == "see <|endoftext|> here<|endoftext|>b<|endoftext|>"


def test_an_unknown_token_that_ends_texts_is_no_matter_where_every_byte_is_known(tmp_path):
    loaded = load_tokenizer(
        str(byte_level(tmp_path / "t.json", [END_OF_TEXT], unknown=END_OF_TEXT))
    )
    assert loaded.end_of_text not in loaded.encode("東 \x00")


def test_unknown_characters_that_would_end_a_text_are_refused_before_any_work(tmp_path):
    model = models.BPE({"a": 0, "b": 1, END_OF_TEXT: 2}, [], unk_token=END_OF_TEXT)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="makes its end-of-text token .* of the character"):
        load_tokenizer(str(tmp_path / "t.json"))


def test_words_that_a_unigram_model_has_as_a_token_are_text(tmp_path):
    """T5's: "</s>", which is HTML too, is a piece of the vocabulary itself."""
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz</>"]
    model = models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], 0, False)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(str(tmp_path / "t.json"))
    texts = ["a</s>b</s>", "</s>", "plain"]
    ids, lengths = loaded.encode_texts(texts, [True, True, False])
    ends = np.flatnonzero(ids == loaded.end_of_text)
    np.testing.assert_array_equal(ends, np.cumsum(lengths)[:2] - 1)
    for text in texts:
        names = [loaded.tokenizer.id_to_token(number) for number in loaded.encode(text).tolist()]
        assert "".join(names) == text


def test_dropout_that_a_file_asks_for_does_not_happen(tmp_path):
    path = byte_level(tmp_path / "t.json", [END_OF_TEXT], dropout=0.5)
    assert json.loads(path.read_text())["model"]["dropout"] == 0.5
    loaded = load_tokenizer(str(path))
    assert {tuple(loaded.encode("thththth")) for _ in range(30)} == {(256,) * 4}
    assert set(loaded.encode_batch(["thththth"] * 30, [False] * 30)) == {256}


@pytest.mark.parametrize("wanted", [1, 4, 5, 9])
def test_documents_are_counted_and_not_looked_for(wanted):
    """A limit counts on what was put in: an id in a text that looks like an end changes nothing."""

    @dataclasses.dataclass
    class Misled:
        end_of_text: int = 97  # "a"

        def encode_texts(self, texts, ends):
            ids = [
                list(text.encode()) + [97] * ended for text, ended in zip(texts, ends, strict=True)
            ]
            return np.concatenate(ids), np.array([len(row) for row in ids])

    pieces = [Piece("aaa", True), Piece("aa", False), Piece("b", False), Piece("c", True)]
    [tokens] = encode_pieces(iter(pieces), Misled())
    part = tokens.up_to_document_end(wanted)
    assert (len(part.ids), part.documents, part.bytes) == ((4, 1, 3) if wanted < 5 else (9, 2, 7))
    assert tokens.up_to_document_end(10) is None


def test_a_folder_of_hugging_face_is_a_tokenizer(tmp_path, source):
    (tmp_path / "model").mkdir()
    byte_level(tmp_path / "model/tokenizer.json", ["</s>"])
    assert run(source, tmp_path / "model", tmp_path / "out") == 0
    assert shards.read_manifest(str(tmp_path / "out"), "train").end_of_text_token == "</s>"


@pytest.mark.parametrize("extra", [0, 1])
def test_two_bytes_are_enough_for_65536_ids(tmp_path, extra):
    """And no more: the id 65,536 needs four."""
    size = 65_536 + extra
    words = {f"w{number}": number for number in range(size - 1)} | {END_OF_TEXT: size - 1}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(str(tmp_path / "t.json"))
    shards.write_shards(tmp_path / "o", "train", loaded, [f"w{size - 2} w1", "w0"])
    manifest = shards.read_manifest(str(tmp_path / "o"), "train")
    assert (manifest.vocab_size, manifest.dtype) == (size, "uint32" if extra else "uint16")
    tokens = shards.open_shards(str(tmp_path / "o"), manifest)[:]
    np.testing.assert_array_equal(tokens, [size - 1, size - 2, 1, size - 1, 0, size - 1])


def test_text_in_memory_has_the_same_ends(tmp_path):
    path = byte_level(tmp_path / "t.json", ["</s>"])
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(make_text(number, 9) + " </s>")
    config = DataConfig(path=str(tmp_path), tokenizer=str(path), holdout_every=3)
    source = open_split(config, "train", 300)
    assert (source.tokens[:] == source.end_of_text).sum() == 1 + source.documents
