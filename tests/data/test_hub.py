"""Data sets of the hub: their layouts, downloads that break off and go on, files that are not what
the hub says.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.data.conftest import jsonl, make_text, write_documents
from tests.data.hub_server import COMMIT, HubServer, serve
from tests.data.test_prepare import ROOT
from xlstm_jax.data import hub, prepare, shards
from xlstm_jax.data.sources import InputFile, Source, layout_of, open_source, select
from xlstm_jax.errors import UserError


def content_of(path, texts) -> bytes:
    return write_documents(path, texts).read_bytes()


@pytest.fixture
def slimpajama(tmp_path):
    """The layout of SlimPajama-627B in small."""
    files = {"README.md": b"about", ".gitattributes": b""}
    for chunk in (1, 2, 10):
        for number in (0, 2, 10):
            name = f"train/chunk{chunk}/example_train_{number}.jsonl.zst"
            files[name] = content_of(
                tmp_path / name, [f"{chunk} {number} " + make_text(number, 400)]
            )
    files["validation/chunk1/example_holdout_7.jsonl.zst"] = content_of(
        tmp_path / "v.jsonl.zst", ["held out"]
    )
    files["test/chunk1/example_holdout_8.jsonl.zst"] = content_of(
        tmp_path / "t.jsonl.zst", ["test"]
    )
    return HubServer("cerebras/SlimPajama-627B", files)


@pytest.fixture
def address(slimpajama, monkeypatch, tmp_path):
    with serve(slimpajama) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        # The pauses between two attempts are cut short.
        monkeypatch.setattr(
            time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))
        )
        yield address


def run(output, *more, source="cerebras/SlimPajama-627B"):
    return prepare.main(
        [
            "prepare",
            f"--source={source}",
            "--tokenizer=byte",
            f"--output={output}",
            "--workers=1",
            *more,
        ]
    )


def test_one_command_fetches_and_prepares_the_splits_of_slimpajama(slimpajama, address, tmp_path):
    output = tmp_path / "out"
    assert run(output) == 0
    manifest = shards.read_manifest(str(output), "train")
    assert manifest.source == f"cerebras/SlimPajama-627B@{COMMIT}"
    names = [entry.file for entry in manifest.inputs]
    assert names == [
        f"train/chunk{chunk}/example_train_{k}.jsonl.zst"
        for chunk in (1, 2, 10)
        for k in (0, 2, 10)
    ]
    assert (
        manifest.documents == 9 and shards.read_manifest(str(output), "validation").documents == 1
    )
    assert not list(output.rglob("*.zst")) and not list(output.rglob("downloads")), (
        "what is prepared is removed"
    )
    assert not slimpajama.downloads("test/chunk1/example_holdout_8.jsonl.zst")


def test_files_can_be_chosen_and_kept(slimpajama, address, tmp_path):
    output = tmp_path / "out"
    assert run(output, "--split=train", "--files=train/chunk2/*", "--keep-downloads=yes") == 0
    assert shards.read_manifest(str(output), "train").documents == 3
    kept = output / "train/downloads/train/chunk2/example_train_2.jsonl.zst"
    assert kept.read_bytes() == slimpajama.files["train/chunk2/example_train_2.jsonl.zst"]


def test_only_what_a_limit_needs_is_downloaded(slimpajama, address, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "JOB_BYTES", 1)
    monkeypatch.setitem(prepare.prepare_split.__kwdefaults__, "job_bytes", 1)
    assert run(tmp_path / "out", "--split=train", "--max-tokens=3000") == 0
    fetched = [name for name in slimpajama.files if slimpajama.downloads(name)]
    assert len(fetched) <= 5


FILE = "train/chunk1/large.jsonl.zst"
LARGE = random.Random(0).randbytes(600_000)


def fetch(slimpajama, folder):
    slimpajama.files[FILE] = LARGE
    name, files = hub.list_files("cerebras/SlimPajama-627B")
    [entry] = [entry for entry in files if entry[0] == FILE]
    return hub.download(name, *entry, folder).read_bytes()


def test_a_connection_that_breaks_is_taken_up_where_it_broke(slimpajama, address, tmp_path):
    slimpajama.break_after[FILE] = [300_000, 0, 200_001]
    assert fetch(slimpajama, tmp_path / "fetched") == LARGE
    assert slimpajama.downloads(FILE) == [None, "bytes=300000-", "bytes=300000-", "bytes=500001-"]


def test_a_download_goes_on_in_another_process(slimpajama, address, tmp_path):
    slimpajama.break_after[FILE] = [300_000] + [0] * 1000  # the server goes away
    with pytest.raises(
        UserError,
        match=f"{FILE}' of .* can't be downloaded from {address}: .*; the same command goes on",
    ):
        fetch(slimpajama, tmp_path / "fetched")
    assert len(slimpajama.downloads(FILE)) == 1 + hub.ATTEMPTS
    slimpajama.break_after.clear()
    slimpajama.requests.clear()
    assert fetch(slimpajama, tmp_path / "fetched") == LARGE
    assert slimpajama.downloads(FILE) == ["bytes=300000-"]


def test_a_server_that_can_only_begin_anew_is_understood(slimpajama, address, tmp_path):
    slimpajama.ranges = False
    slimpajama.break_after[FILE] = [300_000]
    assert fetch(slimpajama, tmp_path / "fetched") == LARGE


@pytest.mark.parametrize("change", ["cut off", "longer", "another byte"])
def test_a_file_of_wrong_size_or_content_is_refused(slimpajama, address, tmp_path, change):
    slimpajama.wrong[FILE], message = {
        "cut off": (LARGE[:-10], "Requested Range|the connection broke"),
        "longer": (LARGE + b"more", "bytes instead of"),
        "another byte": (b"?" + LARGE[1:], "its sha256 is not that"),
    }[change]
    with pytest.raises(UserError, match=message):
        fetch(slimpajama, tmp_path / "fetched")
    slimpajama.wrong.clear()
    assert fetch(slimpajama, tmp_path / "fetched") == LARGE, (
        "fetched when the hub has the right one"
    )


def test_a_file_that_is_gone_is_no_reason_to_wait(slimpajama, address, tmp_path):
    with pytest.raises(UserError, match="404"):
        hub.download(
            f"cerebras/SlimPajama-627B@{COMMIT}",
            "train/gone.jsonl.zst",
            5,
            None,
            tmp_path / "fetched",
        )
    assert len(slimpajama.downloads("train/gone.jsonl.zst")) == 1


def test_without_a_hash_the_size_is_checked(slimpajama, address, tmp_path):
    slimpajama.lfs = False
    slimpajama.wrong[FILE] = LARGE + b"more"
    with pytest.raises(UserError, match="bytes instead of"):
        fetch(slimpajama, tmp_path / "fetched")


def test_a_finished_download_is_not_repeated(slimpajama, address, tmp_path):
    for _ in range(2):
        fetch(slimpajama, tmp_path / "fetched")
    assert len(slimpajama.downloads(FILE)) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "nobody/nothing",
            (
                "'nobody/nothing' is no file or folder, and as a data set it can't be listed on "
                "http://127.0.0.1"
            ),
        ),
        ("a b/c", "is no file, no folder and no data set"),
    ],
)
def test_a_data_set_that_is_not_there_is_named(address, tmp_path, capsys, source, message):
    assert run(tmp_path / "out", source=source) == 2
    assert message in capsys.readouterr().err


def test_no_network_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(tmp_path / "out") == 2
    assert "can't be listed on http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
def test_a_preparation_killed_while_it_downloads_goes_on(slimpajama, address, tmp_path):
    """The newest commit may be another one by then: the plan keeps the first."""
    slimpajama.break_after = {
        name: [400] + [0] * 1000 for name in slimpajama.files if "chunk2" in name
    }
    command = [
        sys.executable,
        "-m",
        "xlstm_jax.data.prepare",
        "--source=cerebras/SlimPajama-627B",
        "--tokenizer=byte",
    ]
    command += [f"--output={tmp_path}/out", "--split=train", "--workers=1"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while not any(slimpajama.downloads(name) for name in slimpajama.break_after):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    slimpajama.break_after.clear()
    assert subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True).returncode == 0
    alone = tmp_path / "alone"
    assert run(alone, "--split=train") == 0
    for name in ("tokens-00000.bin", "manifest.json"):
        assert (alone / "train" / name).read_bytes() == (tmp_path / "out/train" / name).read_bytes()


def test_a_tokenizer_comes_from_the_hub_by_name(bpe_file, monkeypatch, tmp_path):
    with serve(HubServer("gpt2", {"tokenizer.json": bpe_file.read_bytes()})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        tokenizer = prepare.install_tokenizer("gpt2", tmp_path)
        assert tokenizer.name == "gpt2"
        assert (tmp_path / "tokenizer.json").read_bytes() == bpe_file.read_bytes()
        with pytest.raises(
            UserError,
            match="--tokenizer 'gpt3' is no file, and its tokenizer.json can't be had from",
        ):
            prepare.install_tokenizer("gpt3", tmp_path / "other")


def named(source, *names):
    return Source(source, None, tuple(InputFile(name, 1) for name in names))


LAYOUTS = {
    "DKYoon/SlimPajama-6B": {
        "train": [
            "data/train-00000-of-00048-ab7b35705d5319a2.parquet",
            "data/train-00001-of-00048-d3ec6ab4a6e0c1d9.parquet",
        ],
        "validation": ["data/validation-00000-of-00001-b3c9d2f1f4a27f2d.parquet"],
        None: ["data/test-00000-of-00001-3a4b.parquet"],
    },
    "Salesforce/wikitext": {
        "train": [
            "wikitext-103-raw-v1/train-00000-of-00002.parquet",
            "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        ],
        "validation": ["wikitext-103-raw-v1/validation-00000-of-00001.parquet"],
        None: [
            "wikitext-103-raw-v1/test-00000-of-00001.parquet",
            "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        ],
    },
    "mlfoundations/dclm-baseline-1.0": {
        "train": [
            f"global-shard_01_of_10/local-shard_0_of_10/shard_{k:08d}_processed.jsonl.zst"
            for k in range(999)
        ],
        "validation": [
            "global-shard_01_of_10/local-shard_0_of_10/shard_00000999_processed.jsonl.zst"
        ],
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_splits_of_known_data_sets(name):
    layout, source = layout_of(name), named(name, *sum(LAYOUTS[name].values(), []))
    for split in ("train", "validation"):
        chosen = [file.name for file in select(source, split, layout.files, layout.holdout_every)]
        assert chosen == LAYOUTS[name][split]
    assert layout.join == (name == "Salesforce/wikitext")


def test_files_without_splits_are_for_training_or_dealt_out():
    source = named("x", "a.jsonl", "b.jsonl", "c.jsonl")
    assert len(select(source, "train", "*", None)) == 3
    assert [file.name for file in select(source, "validation", "*", 3)] == ["c.jsonl"]
    assert [file.name for file in select(source, "train", "*", 3)] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(UserError, match="no file names a split; give --holdout-every=N"):
        select(source, "validation", "*", None)
    with pytest.raises(UserError, match="its files name train; give --holdout-every=N"):
        select(named("x", "train/a.jsonl", "train/b.jsonl"), "validation", "*", None)


def test_files_of_a_folder_are_in_natural_order_and_hidden_ones_left_out(tmp_path):
    for name in ("a10.jsonl", "a9.jsonl", "b/1.txt", ".hidden/x.txt", "b/.y.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(["x"]))
    assert [file.name for file in open_source(str(tmp_path)).files] == [
        "a9.jsonl",
        "a10.jsonl",
        "b/1.txt",
    ]
    assert json.loads(jsonl(["x"]))["text"] == "x"
