"""The command from text to token shards: the same bytes whatever the workers, and nothing lost."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.data.conftest import make_text, write_documents
from xlstm_jax.data import documents, encoding, jobs, prepare, shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import open_split
from xlstm_jax.data.prepare import install_tokenizer, prepare_split
from xlstm_jax.data.sources import Layout
from xlstm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SUFFIXES = (".jsonl.zst", ".jsonl.gz", ".jsonl", ".parquet")


def text_of(file: int, number: int) -> str:
    return f"{file}.{number} " + make_text(100 * file + number, 5 + 17 * number)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve files of six documents, in all formats, and their texts in order."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = []
    for file in range(12):
        documents = [text_of(file, number) for number in range(6)]
        write_documents(folder / f"train/chunk1/example_{file}{SUFFIXES[file % 4]}", documents)
        texts += documents
    write_documents(folder / "validation/chunk1/holdout_0.jsonl.zst", ["held out", "too"])
    return folder, texts


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def prepared(corpus, output, bpe_file, **options):
    folder, _ = corpus
    tokenizer = install_tokenizer(str(bpe_file), output)
    return prepare_split(str(folder), "train", tokenizer, output, job_bytes=1000, **options)


def test_the_stream_decodes_to_the_documents_in_the_order_of_the_files(corpus, tmp_path, bpe_file):
    manifest = prepared(corpus, tmp_path, bpe_file)
    source = open_split(
        DataConfig(path=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json")), "train", 400
    )
    assert source.tokenizer.decode(source.tokens[:]).split("<|endoftext|>") == ["", *corpus[1], ""]
    assert (source.documents, source.bytes) == (72, sum(len(text.encode()) for text in corpus[1]))
    assert len(manifest.shards) > 3 and not shards.verify(str(tmp_path), manifest)
    assert [entry.file for entry in manifest.inputs] == [
        f"train/chunk1/example_{k}{SUFFIXES[k % 4]}" for k in range(12)
    ]
    assert sum(entry.tokens for entry in manifest.inputs) == manifest.tokens
    assert {path.name for path in (tmp_path / "train").iterdir()} == {
        ".lock", "manifest.json", "report.jsonl", *(shard.file for shard in manifest.shards),
    }  # fmt: skip


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(corpus, tmp_path, bpe_file):
    folders = []
    for workers in (1, 2, 3):
        prepared(corpus, tmp_path / str(workers), bpe_file, workers=workers, max_tokens=2500)
        folders.append(contents(tmp_path / str(workers) / "train"))
    assert folders[0] == folders[1] == folders[2]


@pytest.mark.parametrize("wanted", [1, 700, 701, 3000])
def test_a_limit_ends_with_the_document_that_reaches_it(corpus, tmp_path, bpe_file, wanted):
    whole = prepared(corpus, tmp_path / "whole", bpe_file)
    manifest = prepared(corpus, tmp_path / "part", bpe_file, max_tokens=wanted)
    tokens = shards.open_shards(str(tmp_path / "part"), manifest)[1:]
    everything = shards.open_shards(str(tmp_path / "whole"), whole)[1:]
    np.testing.assert_array_equal(tokens, everything[: len(tokens)])
    ends = np.flatnonzero(everything == manifest.end_of_text) + 1
    assert manifest.tokens == len(tokens) == ends[ends >= wanted][0]
    assert (
        manifest.documents
        == (tokens == manifest.end_of_text).sum()
        == sum(entry.documents for entry in manifest.inputs)
    )
    assert manifest.bytes == sum(len(text.encode()) for text in corpus[1][: manifest.documents])
    assert len(list((tmp_path / "part/train").glob("*.bin"))) == len(manifest.shards)


def test_what_was_done_before_is_kept_and_what_is_complete_left_alone(
    corpus, tmp_path, bpe_file, monkeypatch, capsys
):
    prepared(corpus, tmp_path / "undisturbed", bpe_file)
    run_job, calls = prepare.Workers.submit, []

    def failing(self, number, *rest):
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_job(self, number, *rest)

    monkeypatch.setattr(prepare.Workers, "submit", failing)
    with pytest.raises(KeyboardInterrupt):
        prepared(corpus, tmp_path / "stopped", bpe_file)
    folder = tmp_path / "stopped/train"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.bin")}
    assert kept and not (folder / "manifest.json").exists()
    (folder / "tokens-00009.bin.1.partial").write_text("left by a killed process")
    prepared(corpus, tmp_path / "stopped", bpe_file)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert contents(folder) == contents(tmp_path / "undisturbed/train")
    number = len(calls)
    prepared(corpus, tmp_path / "stopped", bpe_file)
    assert len(calls) == number and "complete already" in " ".join(capsys.readouterr().out.split())


def test_a_folder_begun_otherwise_is_refused(corpus, tmp_path, bpe_file):
    prepared(corpus, tmp_path, bpe_file)
    with pytest.raises(UserError, match="begun with max-tokens None, not 5"):
        prepared(corpus, tmp_path, bpe_file, max_tokens=5)
    with pytest.raises(UserError, match="begun with tokenizer '[0-9a-f]+', not 'byte'"):
        prepare_split(str(corpus[0]), "train", install_tokenizer("byte", tmp_path), tmp_path)


def damaged(folder):
    write_documents(folder / "a.jsonl", ["one", "", "two"])
    with open(folder / "a.jsonl", "ab") as file:
        file.write(b"{\n")
    write_documents(folder / "b.jsonl.zst", [make_text(1, 9000), "four"])
    content = (folder / "b.jsonl.zst").read_bytes()
    (folder / "b.jsonl.zst").write_bytes(content[:-200])
    (folder / "c.txt").write_bytes(b"\xff")
    return folder


def test_damage_is_counted_and_named_and_the_rest_is_kept(tmp_path, capsys):
    source = damaged(tmp_path / "in") if (tmp_path / "in").mkdir() is None else None
    manifest = prepare_split(
        str(source), "train", install_tokenizer("byte", tmp_path), tmp_path, job_bytes=1
    )
    assert manifest.damaged == {"compression": 1, "empty": 1, "json": 1, "utf-8": 1}
    report = [
        json.loads(line) for line in (tmp_path / "train/report.jsonl").read_text().splitlines()
    ]
    assert [(entry["file"], entry["line"], entry["kind"]) for entry in report] == [
        ("a.jsonl", 2, "empty"),
        ("a.jsonl", 4, "json"),
        ("b.jsonl.zst", 1, "compression"),
        ("c.txt", 1, "utf-8"),
    ]
    assert (
        "4 damaged records left out (1 compression, 1 empty, 1 json, 1 utf-8), named in"
        in " ".join(capsys.readouterr().out.split())
    )
    assert manifest.documents == 2


def test_damage_can_be_fatal(tmp_path):
    source = damaged(tmp_path / "in") if (tmp_path / "in").mkdir() is None else None
    with pytest.raises(UserError, match="a.jsonl, line 2: empty text"):
        prepare_split(
            str(source), "train", install_tokenizer("byte", tmp_path), tmp_path, fail=True
        )


def test_a_wrong_field_ends_it_at_once(corpus, tmp_path):
    with pytest.raises(
        UserError, match="has no text: no 'body' among id, text; name the field with --field"
    ):
        prepare_split(
            str(corpus[0]),
            "train",
            install_tokenizer("byte", tmp_path),
            tmp_path,
            Layout(field="body"),
        )


def test_a_source_without_any_document_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(UserError, match="no document was found; .*report.jsonl"):
        prepare_split(
            str(tmp_path / "a.txt"),
            "train",
            install_tokenizer("byte", tmp_path / "o"),
            tmp_path / "o",
        )


def test_three_thousand_tiny_files_are_one_shard_in_natural_order(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3000):
        (tmp_path / f"in/{number}.txt").write_text(str(number))
    tokenizer = install_tokenizer("byte", tmp_path / "o")
    manifest = prepare_split(str(tmp_path / "in"), "train", tokenizer, tmp_path / "o")
    tokens = shards.open_shards(str(tmp_path / "o"), manifest)[:]
    assert tokenizer.decode(tokens).split() == [str(number) for number in range(3000)]
    assert (manifest.documents, len(manifest.inputs), len(manifest.shards)) == (3000, 3000, 1)


def test_progress_goes_on_inside_a_file(tmp_path, monkeypatch):
    """Of one large file too the time that is left can be told."""
    monkeypatch.setattr(documents, "BLOCK", 1000)
    monkeypatch.setattr(documents, "COMPRESSED_BLOCK", 100)
    monkeypatch.setattr(documents, "ROWS", 5)
    monkeypatch.setattr(encoding, "BATCH", 1000)
    for suffix in (*SUFFIXES, ".txt"):
        texts = [make_text(seed, 200) for seed in range(100)]
        path = write_documents(tmp_path / f"in/a{suffix}", texts)
        told = []
        output = tmp_path / f"out{suffix}"
        output.mkdir()
        settings = jobs.Settings(str(path), path.parent, output, "byte", "text", False, False, True)
        file = jobs.InputFile(path.name, path.stat().st_size)
        tokenizer = install_tokenizer("byte", output)
        jobs.run_job(
            0, (file,), None, settings, tokenizer, lambda _, size, told=told: told.append(size)
        )
        assert sum(told) == file.size and len([size for size in told if size]) > 10, suffix


def test_a_file_that_changes_on_the_way_is_noticed(corpus, tmp_path, monkeypatch):
    write_documents(tmp_path / "in/a.jsonl", ["one"])
    monkeypatch.setattr(
        prepare.Workers, "submit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    arguments = (str(tmp_path / "in"), "train", install_tokenizer("byte", tmp_path), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare_split(*arguments)
    monkeypatch.undo()
    write_documents(tmp_path / "in/a.jsonl", ["one", "two"])
    with pytest.raises(UserError, match="a.jsonl' has changed since the preparation began"):
        prepare_split(*arguments)


def test_one_command_prepares_training_and_validation(corpus, tmp_path, bpe_file, capsys):
    argv = [
        "prepare",
        f"--source={corpus[0]}",
        f"--tokenizer={bpe_file}",
        f"--output={tmp_path}",
        "--workers=1",
    ]
    assert prepare.main(argv) == 0
    assert shards.read_manifest(str(tmp_path), "train").documents == 72
    held_out = shards.read_manifest(str(tmp_path), "validation")
    assert held_out.documents == 2 and held_out.tokenizer == "tiny-bpe"
    assert "train: 72 documents" in capsys.readouterr().out


MISTAKES = {
    "no source": (["--source="], "--source is missing"),
    "unknown source": (
        ["--source=no-such"],
        "--source 'no-such' is no file, no folder and no data set",
    ),
    "split": (["--split=dev"], "--split is 'dev'; it must be"),
    "damage": (["--on-damage=ask"], "--on-damage is 'ask'; it must be 'skip' or 'fail'"),
    "number": (["--max-tokens=1e9"], "--max-tokens is '1e9'; it must be a whole number"),
    "files": (["--files=*.csv"], "--files=*.csv fits none of the 13 files"),
    "unknown flag": (["--tokeniser=x"], "Unknown command line flag 'tokeniser'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, corpus, tmp_path, capsys):
    more, message = MISTAKES[mistake]
    assert (
        prepare.main(
            ["prepare", f"--source={corpus[0]}", "--tokenizer=byte", f"--output={tmp_path}", *more]
        )
        == 2
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "B/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_two_preparations_of_one_folder_do_not_meet(corpus, tmp_path):
    (tmp_path / "train").mkdir()
    with (
        prepare.locked(tmp_path / "train"),
        pytest.raises(UserError, match="is being prepared by another process"),
    ):
        prepare_split(str(corpus[0]), "train", install_tokenizer("byte", tmp_path), tmp_path)


MEASURE = """
import re, sys
from xlstm_jax.data.prepare import main
status = main(["prepare", *sys.argv[1:]])
# Not ru_maxrss: that begins with the memory of the process which started this one.
print(status, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_stays_below_a_gibibyte_whatever_the_file(tmp_path, bpe_file):
    """A text of 80 MB in one line, with letters of four bytes, and 300 MB of ordinary lines in one
    file.
    """
    with open(tmp_path / "a.jsonl", "w") as file:
        json.dump(
            {"text": "😀 " + "some words of text and " * (80_000_000 // 23)},
            file,
            ensure_ascii=False,
        )
        file.write("\n")
        line = json.dumps({"text": "more words and more " * 500}) + "\n"
        for _ in range(300_000_000 // len(line)):
            file.write(line)
    command = [
        sys.executable,
        "-c",
        MEASURE,
        f"--source={tmp_path}/a.jsonl",
        "--tokenizer=byte",
        f"--output={tmp_path}/o",
    ]
    done = subprocess.run(
        [*command, "--workers=1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, peak = map(int, done.stdout.split()[-2:])
    assert status == 0 and peak < 1024, f"{peak} MiB"
