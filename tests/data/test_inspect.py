"""A prepared folder explains itself."""

import numpy as np
import pytest

from tests.data.conftest import make_text, write_documents
from xlstm_jax.data import inspect
from xlstm_jax.data.prepare import install_tokenizer, prepare_split

TEXTS = [f"document {k}: " + make_text(k, 2 ** (k % 9)) for k in range(30)]


@pytest.fixture
def folder(tmp_path, bpe_file, capsys):
    write_documents(tmp_path / "in/a.jsonl", [*TEXTS[:10], ""])
    write_documents(tmp_path / "in/b.jsonl", TEXTS[10:])
    prepare_split(
        str(tmp_path / "in"),
        "train",
        install_tokenizer(str(bpe_file), tmp_path / "out"),
        tmp_path / "out",
        job_bytes=1,
    )
    capsys.readouterr()
    return tmp_path / "out"


def test_it_tells_what_there_is(folder, capsys):
    assert inspect.main(["inspect", str(folder), "--documents=2"]) == 0
    printed = capsys.readouterr().out
    told = (
        "30, on average",
        "2 shards",
        "tokenizer   'tiny-bpe'",
        "left out    1 empty",
        "a.jsonl ... b.jsonl",
        "as it was prepared",
    )
    for words in told:
        assert words in printed, words
    assert TEXTS[0] in printed and TEXTS[1] in printed and TEXTS[2] not in printed


def test_it_ends_with_the_command_that_trains_on_the_folder(folder, capsys):
    """Once there is a held-out split, which training asks for."""
    assert inspect.main(["inspect", str(folder)]) == 0
    assert "next:" not in capsys.readouterr().out
    tokenizer = install_tokenizer(str(folder / "tokenizer.json"), folder)
    held_out = write_documents(folder.parent / "held_out.jsonl", ["held out"])
    prepare_split(str(held_out), "validation", tokenizer, folder, job_bytes=1)
    capsys.readouterr()
    assert inspect.main(["inspect", str(folder)]) == 0
    command = capsys.readouterr().out.partition("next:\n")[2].replace("\\\n", "").split()
    assert command[-3:] == [
        f"--config.data.path={folder}",
        f"--config.data.tokenizer={folder}/tokenizer.json",
        f"--config.model.vocab_size={tokenizer.vocab_size}",
    ]


def test_long_documents_are_shown_by_their_ends(folder, capsys):
    inspect.main(["inspect", str(folder), "--documents=30"])
    printed = capsys.readouterr().out
    assert (
        TEXTS[8][: inspect.SHOWN] in printed
        and TEXTS[8][-inspect.SHOWN :] in printed
        and TEXTS[8] not in printed
    )


def test_damage_is_found(folder, capsys):
    path = folder / "train/tokens-00001.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert inspect.main(["inspect", str(folder)]) == inspect.DAMAGED
    assert (
        "DAMAGED: tokens-00001.bin: its content is not what was prepared" in capsys.readouterr().out
    )
    (folder / "tokenizer.json").unlink()
    inspect.main(["inspect", str(folder)])
    assert "tokenizer.json is missing" in capsys.readouterr().out


def test_lengths_are_counted_in_powers_of_two():
    lines = inspect.histogram(np.array([1, 1, 3, 4, 7, 100])).splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["2", "1", "2", "0", "0", "0", "1"]
    assert "64-127" in lines[-1].replace(" ", "") and "86.2%" in lines[-1]


@pytest.mark.parametrize("limit", [3, 1 << 22])
def test_lengths_are_those_of_the_documents(folder, monkeypatch, limit):
    monkeypatch.setattr(inspect, "READ", limit)
    manifest = inspect.shards.read_manifest(str(folder), "train")
    tokens = inspect.shards.open_shards(str(folder), manifest)
    tokenizer = inspect.load_tokenizer(str(folder / "tokenizer.json"))
    expected = [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    np.testing.assert_array_equal(inspect.document_lengths(tokens, manifest, len(tokens)), expected)
    starts = list(inspect._first_documents(tokens, manifest.end_of_text, 30))
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in starts] == TEXTS


def test_a_folder_without_data_is_named(tmp_path, capsys):
    assert inspect.main(["inspect", str(tmp_path)]) == 2
    assert "holds no prepared data" in capsys.readouterr().err
    assert inspect.main(["inspect"]) == 2
    assert "the folder is missing" in capsys.readouterr().err
