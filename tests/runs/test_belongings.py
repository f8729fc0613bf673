"""What belongs to a run stays with it: its tokenizer lies in its folder, its data are known by what
is in them. The folder may be moved, and commands may start anywhere.
"""

import dataclasses
import json
import pathlib
import shutil

import pytest
import tokenizers

from xlstm_jax.config import Config, DataConfig
from xlstm_jax.data.loader import open_split, record
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.run import evaluate_run
from xlstm_jax.interop.convert import export_checkpoint
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.paths import check_can_be_written
from xlstm_jax.runs.folder import (
    absolute,
    check_data,
    find_run,
    open_run,
    own_tokenizer,
    write_config,
    write_data_record,
)
from xlstm_jax.training import loop


def write_tokenizer(path: pathlib.Path, *more: str) -> str:
    """Bytes as a tokenizer.json, and some more tokens."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: k for k, letter in enumerate([*sorted(alphabet), *more])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """A working directory with a text and a tokenizer."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "text.txt").write_text("a cell keeps what its gate lets in\n" * 100)
    write_tokenizer(folder / "tokenizer.json")
    monkeypatch.chdir(folder)
    return folder


def config(**data) -> Config:
    return Config(data=DataConfig(**data))


def data_record(of: Config) -> dict:
    splits = {name: open_split(of.data, name, 400) for name in ("train", "validation")}
    return json.loads(record(splits["train"], {"validation": splits["validation"]}, of.data))


def test_relative_paths_become_absolute(here):
    relative = config(
        path="a:0.7,stdlib:0.3,/x:1",
        validation_path="a",
        validation_sets="one=b,two=/c",
        tokenizer="tokenizer.json",
    )
    relative = dataclasses.replace(
        relative, checkpoint=dataclasses.replace(relative.checkpoint, init_from="../run")
    )
    data = absolute(relative).data
    assert data.path == f"{here}/a:0.7,stdlib:0.3,/x:1.0"
    assert data.validation_path == f"{here}/a"
    assert data.validation_sets == f"one={here}/b,two=/c"
    assert data.tokenizer == f"{here}/tokenizer.json"
    assert absolute(relative).checkpoint.init_from == str(here.parent / "run")
    assert absolute(Config()) == Config()


def test_a_run_has_a_copy_of_its_tokenizer_and_reads_no_other(here, tmp_path):
    given = config(path="text.txt", tokenizer="tokenizer.json")
    write_config(open_run("run", given), given)
    content = (here / "tokenizer.json").read_bytes()
    (here / "tokenizer.json").unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(here / "run", moved)
    own = find_run(moved).read_config().data.tokenizer
    assert own == str(moved / "tokenizer.json")
    assert pathlib.Path(own).read_bytes() == content


def test_the_same_tokenizer_may_lie_elsewhere_another_is_refused(here):
    given = config(path="text.txt", tokenizer="tokenizer.json")
    folder = open_run("run", given)
    write_config(folder, given)
    shutil.copy("tokenizer.json", "copy.json")
    write_tokenizer(here / "other.json", "aa")
    for name in ("copy.json", f"{here}/copy.json", "no longer there.json"):
        there = own_tokenizer(open_run("run", config(path="text.txt", tokenizer=name)), given)
        assert there.data.tokenizer == str(folder.tokenizer)
    for name in ("other.json", "byte"):
        with pytest.raises(UserError, match="another tokenizer than data.tokenizer"):
            own_tokenizer(folder, config(path="text.txt", tokenizer=name))


def test_a_run_of_bytes_takes_no_tokenizer_file(here):
    write_config(open_run("run", config(path="text.txt")), config(path="text.txt"))
    with pytest.raises(UserError, match="data.tokenizer is 'byte' there and 'tokenizer.json' here"):
        open_run("run", config(path="text.txt", tokenizer="tokenizer.json"))


def test_the_same_data_may_lie_elsewhere_others_are_refused(here):
    given = config(path="text.txt")
    folder = open_run("run", given)
    write_config(folder, given)
    write_data_record(folder, data_record(given))
    shutil.copy("text.txt", "copy.txt")
    for path in (f"{here}/text.txt", "copy.txt"):
        again = config(path=path)
        check_data(open_run("run", again), data_record(again))
    (here / "copy.txt").write_text("another text\n" * 100)
    with pytest.raises(UserError, match="have changed since the run began: 'train' differs"):
        check_data(folder, data_record(config(path="copy.txt")))


def test_other_held_out_data_are_refused(here):
    folder, told = open_run("run", Config()), data_record(config(path="text.txt"))
    folder.root.mkdir()
    write_data_record(folder, told)
    more = told | {"more": told["validation"]}
    less = {"train": told["train"]}
    other = told | {"validation": told["validation"] | {"fingerprint": 1}}
    for now, message in (
        (more, "'more' is new"),
        (less, "'validation' is missing"),
        (other, "'validation' differs"),
    ):
        with pytest.raises(UserError, match=message):
            check_data(folder, now)


def test_init_from_must_be_right_when_it_is_read_and_not_later(here):
    def from_folder(path: str) -> Config:
        base = Config()
        return dataclasses.replace(
            base, checkpoint=dataclasses.replace(base.checkpoint, init_from=path)
        )

    (here / "good/checkpoints/7").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoint.init_from is 'wrong': folder .* no checkpoint"):
        open_run("run", from_folder("wrong"))
    (here / "run/checkpoints").mkdir(parents=True)  # empty: no obstacle
    folder = open_run("run", from_folder("good"))
    write_config(folder, from_folder("good"))
    with pytest.raises(UserError, match="checkpoint.init_from is .*good' there and"):
        (here / "other/checkpoints/7").mkdir(parents=True)
        open_run("run", from_folder("other"))
    (here / "run/checkpoints/3").mkdir()
    open_run("run", from_folder("moved away"))  # the run goes on from its own checkpoint


@pytest.mark.parametrize("place", ["/proc/nope/run", "text.txt", "text.txt/run"])
def test_a_folder_that_cant_be_made_is_named_at_once(here, place):
    with pytest.raises(UserError, match="--workdir .*(can't be written to|is a file)"):
        open_run(place, Config())


def test_a_folder_that_can_be_made_is_not_made_yet(here):
    open_run("new/run", Config())
    assert not (here / "new").exists()


@pytest.mark.slow
def test_a_run_is_used_from_anywhere(here, tiny, no_op_step, tmp_path, monkeypatch):
    overrides = {
        "data.path": "text.txt",
        "data.tokenizer": "tokenizer.json",
        "train.steps": 4,
        "checkpoint.every": 2,
    }
    trained = loop.train(tiny(overrides), "runs/a")
    expected = evaluate_run("runs/a")
    moved, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    shutil.move(here / "runs/a", moved)
    (here / "tokenizer.json").unlink()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    assert evaluate_run("../moved") == expected
    assert open_checkpoint("../moved").tokenizer.decode([65]) != ""
    assert export_checkpoint("../moved", "exported") == "xlstm"
    assert {"tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (elsewhere / "exported").iterdir()
    }
    again = overrides | {
        "data.path": str(here / "text.txt"),
        "data.tokenizer": "../moved/tokenizer.json",
    }
    assert loop.train(tiny(again), "../moved") == trained  # it was finished: evaluated again


@pytest.mark.parametrize("place", ["new/run", "run"])
def test_trying_a_folder_shows_nothing_to_the_other_processes_of_a_job(here, place, monkeypatch):
    """Not even for a moment: they check the same folder at the same time."""

    def changes(*_, **__):
        raise AssertionError("the trial made or removed a folder")

    (here / "run").mkdir()
    monkeypatch.setattr(pathlib.Path, "mkdir", changes)
    monkeypatch.setattr(pathlib.Path, "rmdir", changes)
    check_can_be_written("--workdir", place)
    assert not any((here / "run").iterdir())


def test_a_folder_with_too_long_a_name_cant_be_written_to(here):
    with pytest.raises(UserError, match="--output .*: File name too long; give another folder"):
        check_can_be_written("--output", "new/" + 300 * "x")
