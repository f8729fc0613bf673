"""Every text that can be read is read; what is left out is named and counted by records."""

import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.data.conftest import jsonl, write_documents
from tests.data.test_documents import read
from xlstm_jax.config import DataConfig
from xlstm_jax.data import corpus, documents, prepare, shards
from xlstm_jax.data.loader import open_split
from xlstm_jax.data.prepare import install_tokenizer, prepare_split
from xlstm_jax.data.sources import open_source
from xlstm_jax.errors import UserError

MARK = "\ufeff".encode()


def run(source, output, *more):
    argv = ["prepare", f"--source={source}", "--tokenizer=byte", f"--output={output}"]
    return prepare.main([*argv, "--workers=1", *more])


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_byte_order_mark_is_no_damage_and_no_text(tmp_path):
    lines = MARK + jsonl(["a"]) + MARK + jsonl(["b"])  # one file appended to another
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.txt").write_bytes(MARK + b"text")
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.jsonl.gz") == (["a", "b"], [])
    assert read(tmp_path / "a.txt") == (["text"], [])
    assert [document.text for document in corpus.read_corpus(str(tmp_path / "a.txt"))] == ["text"]
    (tmp_path / "only.txt").write_bytes(MARK)
    assert read(tmp_path / "only.txt") == ([], [(1, "empty")])


def test_a_number_too_long_for_python_costs_no_text(tmp_path):
    line = b'{"id": ' + b"7" * 5000 + b', "text": "a"}\n'
    (tmp_path / "a.jsonl").write_bytes(line + jsonl(["b"]))
    assert read(tmp_path / "a.jsonl") == (["a", "b"], [])
    (tmp_path / "b.jsonl").write_bytes(line.replace(b'"a"', b"8" * 5000))
    assert read(tmp_path / "b.jsonl") == ([], [(1, "field")])


def test_zeros_behind_gzip_are_padding(tmp_path, monkeypatch):
    content = gzip.compress(jsonl(["a"])) + bytes(700) + gzip.compress(jsonl(["b"])) + bytes(5000)
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    assert read(tmp_path / "a.jsonl.gz") == (["a", "b"], [])
    monkeypatch.setattr(documents, "COMPRESSED_BLOCK", 7)
    assert read(tmp_path / "a.jsonl.gz") == (["a", "b"], [])


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_without_a_byte_was_cut_off(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert read(tmp_path / f"a{suffix}") == ([], [(1, "compression")])
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert read(tmp_path / "a.jsonl") == ([], [])


def test_joined_records_without_text_are_no_document(tmp_path):
    write_documents(tmp_path / "a.parquet", ["", ""])
    assert read(tmp_path / "a.parquet", join=True) == ([], [(1, "empty")])


def test_frames_to_be_skipped_are_skipped(tmp_path):
    """As parallel zstd programs write them."""
    skipped = b"\x50\x2a\x4d\x18\4\0\0\0abcd"
    frames = [zstandard.compress(jsonl([text])) for text in "ab"]
    (tmp_path / "a.jsonl.zst").write_bytes(skipped + frames[0] + skipped + frames[1] + skipped)
    assert read(tmp_path / "a.jsonl.zst") == (["a", "b"], [])


NESTED = [{"doc": {"text": "a", "id": 1}}, {"doc": {"text": "b", "id": 2}}]


def test_a_field_may_lie_in_another(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in NESTED))
    parquet(tmp_path / "a.parquet", doc=[record["doc"] for record in NESTED])
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, "doc.text") == (["a", "b"], [])
    told = []
    for name in ("a.jsonl", "a.parquet"):
        list(documents.read_documents(tmp_path / name, "text", False, told.append))
    assert {damage.detail.split(" among ")[1] for damage in told} == {
        "doc.id, doc.text",
        "doc.text, doc.id",
    }


def test_a_field_with_a_dot_in_its_name_comes_before_a_field_in_a_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"doc.text": "a", "doc": {"text": "b"}}\n')
    parquet(tmp_path / "a.parquet", **{"doc.text": ["a"], "doc": [{"text": "b"}]})
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, "doc.text") == (["a"], [])


def test_missing_parts_of_a_nested_field_are_named(tmp_path):
    values = [{"text": "a"}, None, {"text": None}, {"text": "b"}]
    parquet(tmp_path / "a.parquet", doc=values)
    lines = [json.dumps({"doc": value}) for value in values]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"doc": 7}']))
    expected = (["a", "b"], [(2, "field"), (3, "field")])
    assert read(tmp_path / "a.parquet", "doc.text") == expected
    assert read(tmp_path / "a.jsonl", "doc.text") == (expected[0], [*expected[1], (5, "field")])


TEXTS = ["a", "größer", "a", "b"]
KINDS = {
    "string": pyarrow.array(TEXTS),
    "large_string": pyarrow.array(TEXTS, pyarrow.large_string()),
    "string_view": pyarrow.array(TEXTS, pyarrow.string_view()),
    "category": pyarrow.array(TEXTS).dictionary_encode(),
    "binary": pyarrow.array([text.encode() for text in TEXTS]),
    "large_binary": pyarrow.array([text.encode() for text in TEXTS], pyarrow.large_binary()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_parquet_text_is_read(tmp_path, kind):
    assert read(parquet(tmp_path / "a.parquet", text=KINDS[kind])) == (TEXTS, [])


def test_bytes_that_are_no_text_are_named_by_row(tmp_path):
    parquet(tmp_path / "a.parquet", text=[b"a", b"\xff", b"b"])
    assert read(tmp_path / "a.parquet") == (["a", "b"], [(2, "utf-8")])


def test_damage_counts_records(tmp_path):
    write_documents(tmp_path / "in/a.jsonl", ["a"])
    parquet(tmp_path / "in/b.parquet", text=list(range(1000)))
    parquet(tmp_path / "in/c.parquet", body=["a"] * 500)
    table = pyarrow.table([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "in/d.parquet")
    manifest = prepare_split(
        str(tmp_path / "in"), "train", install_tokenizer("byte", tmp_path / "o"), tmp_path / "o"
    )
    assert manifest.damaged == {"field": 1501}
    report = (tmp_path / "o/train/report.jsonl").read_text()
    told = [json.loads(line)["detail"] for line in report.splitlines()]
    assert told == [
        "'text' is int64",
        "no 'text' among body",
        "2 columns are named 'text'",
    ]


def test_parquet_that_breaks_off_counts_the_rows_behind(tmp_path):
    sink = io.BytesIO()
    texts = [f"{k} " * 50 for k in range(300)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), sink, row_group_size=100)
    content = bytearray(sink.getvalue())
    second = pyarrow.parquet.ParquetFile(sink).metadata.row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + 40] = bytes(40)
    (tmp_path / "a.parquet").write_bytes(content)
    damage, found = [], []
    for piece in documents.read_documents(tmp_path / "a.parquet", "text", False, damage.append):
        found.append(piece.text)
    assert found == texts[: len(found)] and len(found) <= 100
    assert [(entry.kind, entry.records) for entry in damage] == [("parquet", 300 - len(found))]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt"])
def test_a_disk_that_can_not_be_read_is_no_damage(tmp_path, monkeypatch, suffix):
    """The texts behind it would be lost without need: the next attempt may read them."""
    write_documents(tmp_path / f"in/a{suffix}", ["a"])

    def failing(*_, **__):
        raise OSError(5, "Input/output error", "a")

    monkeypatch.setattr(documents, "open", failing, raising=False)
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", failing)
    tokenizer = install_tokenizer("byte", tmp_path / "o")
    with pytest.raises(UserError, match="Input/output error; .*the same command goes on"):
        prepare_split(str(tmp_path / "in"), "train", tokenizer, tmp_path / "o")
    monkeypatch.undo()
    manifest = prepare_split(str(tmp_path / "in"), "train", tokenizer, tmp_path / "o")
    assert (manifest.documents, manifest.damaged) == (1, {})


def test_links_are_followed_once(tmp_path):
    write_documents(tmp_path / "disk/a.jsonl", ["a"])
    write_documents(tmp_path / "disk/deep/b.jsonl", ["b"])
    write_documents(tmp_path / "in/c.jsonl", ["c"])
    (tmp_path / "in/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "in/again").symlink_to(tmp_path / "disk/deep")
    (tmp_path / "disk/deep/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/d.jsonl").symlink_to(tmp_path / "disk/a.jsonl")
    names = [file.name for file in open_source(str(tmp_path / "in")).files]
    assert names == ["again/b.jsonl", "c.jsonl", "d.jsonl", "linked/a.jsonl"]
    texts = corpus.read_corpus(str(tmp_path / "in"))
    assert [document.path for document in texts] == names


def test_a_link_to_nowhere_is_named(tmp_path):
    write_documents(tmp_path / "in/a.jsonl", ["a"])
    (tmp_path / "in/b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="b.jsonl' is a link to '.*gone.jsonl', which does not"):
        open_source(str(tmp_path / "in"))


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    write_documents(tmp_path / "in/a/a.jsonl", ["a"])
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # the superuser may read everything
    with pytest.raises(UserError, match="in/a' can't be read: Permission denied"):
        open_source(str(tmp_path / "in"))


def test_files_that_are_in_no_split_are_told(tmp_path, capsys):
    for name in ("train", "valid", "more", "test"):
        write_documents(tmp_path / f"in/{name}.jsonl", [name])
    (tmp_path / "in/notes.md").write_text("notes")
    (tmp_path / "in/table.csv").write_text("1,2")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "1 file for testing (test.jsonl)" in told
    assert "1 file whose path names no split (more.jsonl)" in told
    assert "2 files of no kind that can be read (notes.md, table.csv)" in told
    assert shards.read_manifest(str(tmp_path / "out"), "train").documents == 1


def test_files_that_are_no_text_are_told_when_text_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 50)
    (tmp_path / "b.txt").write_bytes(b"gr\xfcn")
    (tmp_path / "c.png").write_bytes(b"image")
    lines = open_split(DataConfig(path=str(tmp_path)), "train", 320).description
    assert lines[1].endswith("2 files that are no UTF-8 text (b.txt, c.png)")


def test_any_file_name_has_its_place(tmp_path):
    names = ["1²2.jsonl", "a9.jsonl", "a10.jsonl", "a٣.jsonl", "b\udcff.jsonl"]
    for name in names:
        write_documents(tmp_path / "in" / name, [name.encode(errors="replace").decode()])
    assert {file.name for file in open_source(str(tmp_path / "in")).files} == set(names)
    assert run(tmp_path / "in", tmp_path / "out", "--split=train") == 0
    assert shards.read_manifest(str(tmp_path / "out"), "train").documents == 5
