"""Documents come out of every format as they went in; what is damaged is named with its line and
nothing else is lost.
"""

import gzip
import json

import pytest
import zstandard

from tests.data.conftest import jsonl, make_text, write_documents
from xlstm_jax.data import documents
from xlstm_jax.data.documents import read_documents
from xlstm_jax.errors import UserError

TEXTS = [make_text(seed, 3 + 40 * (seed % 3)) for seed in range(11)]


def read(path, field="text", join=False):
    """The documents of a file and what was found damaged: ([text, ...], [(line, kind), ...])."""
    damage, texts, rest = [], [], ""
    for piece in read_documents(path, field, join, damage.append):
        rest += piece.text
        if piece.last:
            texts.append(rest)
            rest = ""
    assert not rest, "a document without end"
    return texts, [(entry.line, entry.kind) for entry in damage]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_what_was_written_is_read(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(documents, "BLOCK", block)
    monkeypatch.setattr(documents, "COMPRESSED_BLOCK", block)
    assert read(write_documents(tmp_path / f"a{suffix}", TEXTS)) == (TEXTS, [])


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_text_file_is_one_document_to_its_last_byte(tmp_path, monkeypatch, block):
    monkeypatch.setattr(documents, "BLOCK", block)
    text = "".join(TEXTS) + "\n \r\n€"
    assert read(write_documents(tmp_path / "a.txt", [text])) == ([text], [])


def test_joined_records_are_one_document(tmp_path):
    assert read(write_documents(tmp_path / "a.parquet", ["one\n", "", "two\n"]), join=True) == (
        ["one\ntwo\n"],
        [],
    )


def test_several_frames_follow_each_other(tmp_path):
    halves = jsonl(TEXTS[:4]), jsonl(TEXTS[4:])
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, halves)))
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    assert read(tmp_path / "a.jsonl.zst") == read(tmp_path / "a.jsonl.gz") == (TEXTS, [])


def test_the_field_can_be_chosen(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS, "content"))
    assert read(tmp_path / "a.jsonl", "content") == (TEXTS, [])
    assert read(tmp_path / "a.jsonl") == ([], [(k + 1, "field") for k in range(len(TEXTS))])


def test_the_last_line_needs_no_end_and_blank_lines_are_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert read(tmp_path / "a.jsonl") == (["a", "b"], [])


SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\r", "\r\n", "\n", "\x00"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_line_separators_inside_a_text_end_no_record(tmp_path, separator, ascii_only):
    texts = [f"a{separator}b", f"{separator}c{separator}"]
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    assert read(tmp_path / "a.jsonl") == (texts, [])
    (tmp_path / "a.txt").write_bytes("".join(texts).encode())
    assert read(tmp_path / "a.txt") == (["".join(texts)], [])


def test_halves_of_a_pair_that_belong_together_are_one_letter(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}\n{"text": "\\ude00\\ud83d"}\n')
    assert read(tmp_path / "a.jsonl") == (["\U0001f600"], [(2, "utf-8")])


DAMAGED = {
    b'{"text": "a"': "json",
    b'{"text": "a"}{': "json",
    b"[" * 100_000: "json",
    b'{"text": "\xff"}': "utf-8",
    b'{"text": "\\ud83d"}': "utf-8",
    b'{"txt": "a"}': "field",
    b'{"text": 7}': "field",
    b'["text"]': "field",
    b'{"text": ""}': "empty",
    b'{"text": "' + b"a" * 1000 + b'"}': "length",
}


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: line[:20])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_a_damaged_line_is_named_and_its_neighbours_are_read(tmp_path, monkeypatch, line, block):
    monkeypatch.setattr(documents, "BLOCK", block)
    monkeypatch.setattr(documents, "LONGEST_LINE", 900 if DAMAGED[line] == "length" else 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["a", "b"]) + line + b"\n" + jsonl(["c"]))
    assert read(tmp_path / "a.jsonl") == (["a", "b", "c"], [(3, DAMAGED[line])])


@pytest.mark.parametrize("compress", [zstandard.compress, gzip.compress])
@pytest.mark.parametrize("damage", ["cut off", "a byte changed", "something else behind it"])
def test_broken_compression_ends_a_file_and_what_came_before_is_kept(tmp_path, compress, damage):
    texts = [make_text(seed, 200) for seed in range(300)]
    content = bytearray(compress(jsonl(texts)))
    if damage == "cut off":
        del content[-100:]
    elif damage == "a byte changed":
        content[len(content) * 2 // 3] ^= 0x55
        content[-30:] = bytes(30)
    else:
        content += b"something else"
    path = tmp_path / ("a.jsonl.zst" if compress is zstandard.compress else "a.jsonl.gz")
    path.write_bytes(content)
    found, damaged = read(path)
    *_, (line, kind) = damaged
    assert kind == "compression"
    if damage != "a byte changed":  # which also changes lines before it is noticed
        assert found == texts[: len(found)] and len(damaged) == 1 and line == len(found) + 1
        assert len(found) == 300 if damage == "something else behind it" else 0 < len(found) < 300


def test_damage_in_parquet_is_named_by_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [
            None,
            pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"),
            pyarrow.py_buffer(b"a\xffb"),
        ],
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "bytes.parquet")
    assert read(tmp_path / "bytes.parquet") == (["a", "b"], [(2, "utf-8")])
    write_documents(tmp_path / "null.parquet", ["a", None, "", "b"])
    assert read(tmp_path / "null.parquet") == (["a", "b"], [(2, "field"), (3, "empty")])
    assert read(tmp_path / "null.parquet", "content") == ([], [(1, "field")])
    assert read(tmp_path / "null.parquet", "id") == ([], [(1, "field")])
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "null.parquet").read_bytes()[:-20])
    assert read(tmp_path / "broken.parquet") == ([], [(1, "parquet")])


def test_a_text_file_that_is_no_utf8_is_left_out_whole(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün\n".encode() * 3 + b"\xe4h")
    assert read(tmp_path / "a.txt") == ([], [(4, "utf-8")])
    (tmp_path / "cut.txt").write_bytes("grü".encode()[:-1])
    assert read(tmp_path / "cut.txt") == ([], [(1, "utf-8")])
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read(tmp_path / "empty.txt") == ([], [(1, "empty")])


def test_every_kind_of_damage_is_explained():
    assert set(DAMAGED.values()) | {"compression", "parquet"} == documents.KINDS.keys()


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match="no suffix that can be read; these can: .jsonl"):
        read_documents(tmp_path / "a.csv", "text", False, print)


def test_details_say_what_is_there(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "a", "id": 1}))
    damage = []
    list(read_documents(tmp_path / "a.jsonl", "text", False, damage.append))
    assert damage[0].detail == "no 'text' among content, id"
