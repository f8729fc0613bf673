"""Wherever the disk gets full, a preparation ends with one line and status 2, leaves nothing half
written, and goes on after space was made.

The limit on a file's size stands for the disk: the system refuses a write in the same way.
"""

import contextlib
import errno
import resource

import pytest

from tests.data.conftest import make_text, write_documents
from tests.data.hub_server import HubServer, serve
from xlstm_jax.data import hub, jobs, prepare, shards, writing
from xlstm_jax.data.writing import PartialFile, write_whole


@contextlib.contextmanager
def disk_of(num_bytes):
    """Inside it no file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def source(tmp_path):
    """Files that grow, a job each; every second one with many damaged records."""
    for number in range(4):
        damage = ["" for _ in range(300 * (number % 2))]
        texts = [make_text(number, 200 * (1 + number)), *damage]
        write_documents(tmp_path / f"in/{number}.jsonl", texts)
    return tmp_path / "in"


def run(source, output):
    argv = ["prepare", f"--source={source}", "--tokenizer=byte", f"--output={output}"]
    return prepare.main([*argv, "--workers=1", "--split=train"])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("size", [300, 900, 3000, 9000])
def test_a_full_disk_is_one_line_and_goes_on(source, tmp_path, monkeypatch, capfd, size):
    monkeypatch.setattr(prepare, "JOB_BYTES", 1)
    assert run(source, tmp_path / "alone") == 0
    capfd.readouterr()
    with capfd.disabled(), disk_of(size):  # the captured output is a file, too
        with contextlib.redirect_stderr(Lines()) as told:
            assert run(source, tmp_path / "out") == 2
    [line] = [line for line in told.lines if line.startswith("error")]
    assert "no space is left for" in line and "the same command goes on" in line
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out/train/manifest.json").exists()
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.bin")}
    assert run(source, tmp_path / "out") == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert contents(tmp_path / "out/train") == contents(tmp_path / "alone/train")


class Lines:
    """A stream in memory."""

    def __init__(self):
        self.lines = []

    def write(self, text):
        self.lines += text.splitlines()

    def flush(self):
        pass


FILES = [
    "plan.json",
    "tokens-00001.bin",
    "tokens-00001.problems",
    "tokens-00001.json",
    "report.jsonl",
    "manifest.json",
]


@pytest.mark.parametrize("moment", ["write", "finish"])
@pytest.mark.parametrize("name", FILES)
def test_no_file_is_half_written(source, tmp_path, monkeypatch, capsys, name, moment):
    """Whichever file is the one that has no place any more, at its first byte or its last."""
    monkeypatch.setattr(prepare, "JOB_BYTES", 1)

    class Full(PartialFile):
        def __init__(self, path):
            super().__init__(path)
            if path.name == name and moment == "write":
                raise_full()

        def finish(self):
            if self.path.name == name:
                raise_full()
            super().finish()

    def raise_full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        for module in (writing, prepare, shards, jobs):
            patch.setattr(module, "PartialFile", Full)
        assert run(source, tmp_path / "out") == 2
    assert "no space is left for" in capsys.readouterr().err
    assert not (tmp_path / "out/train" / name).exists()
    assert not (tmp_path / "out/train/manifest.json").exists()
    assert run(source, tmp_path / "out") == 0
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_file_stays_as_it_was_when_its_successor_has_no_place(tmp_path):
    write_whole(tmp_path / "a.json", "old")
    with disk_of(100), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "a.json", "new" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_download_that_has_no_place_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: pytest.fail("it would wait"))
    content = bytes(range(256)) * 100
    with serve(HubServer("a/b", {"a.jsonl": content})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        name, [(file, size, sha256)] = hub.list_files("a/b")
        with disk_of(9000), pytest.raises(OSError, match="File too large"):
            hub.download(name, file, size, sha256, tmp_path)
        assert hub.download(name, file, size, sha256, tmp_path).read_bytes() == content
