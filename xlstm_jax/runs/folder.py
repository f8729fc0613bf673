"""A run's directory: what lies where, and who may write to it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from xlstm_jax.config import Config, flat, from_json, keys
from xlstm_jax.data.splits import parse_mixture, validation_sets
from xlstm_jax.data.tokenizer import load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import everywhere, is_first_process
from xlstm_jax.paths import check_can_be_written, locked, refuse_address, refuse_no_text

# Where data and tokenizer lie may change too: they are known by what is in them (`check_data`,
# `own_tokenizer`).
PLACES = ("data.path", "data.validation_path", "data.validation_sets", "data.tokenizer")
NO_PLACES = ("stdlib", "synthetic")  # of data.path: names and no paths


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved configuration."""
        return self.root / "config.json"

    def config_of_length(self, steps: int) -> pathlib.Path:
        """What config.json was while the run was to have so many steps, before that was changed."""
        return self.root / f"config_{steps}_steps.json"

    @property
    def data_record(self) -> pathlib.Path:
        """The files that the tokens came from, with their hashes."""
        return self.root / "data.json"

    @property
    def tokenizer(self) -> pathlib.Path:
        """The run's own copy of its tokenizer; bytes need none."""
        return self.root / "tokenizer.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object per log event."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Folder of event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder with one folder per saved step."""
        return self.root / "checkpoints"

    @property
    def damaged_checkpoints(self) -> pathlib.Path:
        """Where checkpoints that can't be read are moved to."""
        return self.root / "damaged_checkpoints"

    @property
    def profile(self) -> pathlib.Path:
        """Folder of traces for TensorBoard and xprof."""
        return self.root / "profile"

    @property
    def loss_figure(self) -> pathlib.Path:
        """Loss against step."""
        return self.root / "loss.png"

    @property
    def samples(self) -> pathlib.Path:
        """Text that the model generated."""
        return self.root / "samples.txt"

    @property
    def lock(self) -> pathlib.Path:
        """An empty file: whoever trains the run holds its lock."""
        return self.root / ".lock"

    def read_config(self) -> Config:
        """The run's own configuration, with the run's own tokenizer: whatever became of the file
        that `data.tokenizer` named, and wherever the folder is now.

        Raises:
            UserError: the folder is no run, or its configuration is damaged.
        """
        if not self.config.is_file():
            raise UserError(
                f"folder {str(self.root)!r} holds no config.json, so it is no run; give the "
                f"--workdir of a training run"
            )
        try:
            config = from_json(self.config.read_text())
        except UserError as error:  # which says what to do
            raise UserError(f"{self.config}: {error}") from None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.config} can't be used: {error}; restore it or start in another folder"
            ) from None
        return _with_tokenizer(config, str(self.tokenizer)) if self.tokenizer.is_file() else config


def find_run(root: str | pathlib.Path) -> RunFolder:
    """The folder of a run, by its path; whether it is one is not looked at."""
    refuse_address("the folder of the run", str(root))
    root = pathlib.Path(root).expanduser().resolve()
    refuse_no_text("the folder of the run", root)
    return RunFolder(root)


def open_run(root: str | pathlib.Path, config: Config) -> RunFolder:
    """The folder of a new run, or of one that is to go on: with the same configuration, but for the
    keys that are marked `may_change`, `PLACES`, and `train.steps` where the learning rate does not
    depend on it.

    Nothing is written yet.

    Raises:
        UserError: the folder belongs to a run with another configuration, holds a run's files
            without config.json, or can't be written to; `checkpoint.init_from` holds no
            checkpoint.
    """
    refuse_address("--workdir", str(root))
    folder = find_run(root)
    if folder.config.exists():
        _check_same(folder, config)
    else:
        leftovers = [
            path.name
            for path in (folder.metrics, folder.checkpoints, folder.samples)
            if path.is_file() or path.is_dir() and any(path.iterdir())
        ]
        if leftovers:
            raise UserError(
                f"folder {str(folder.root)!r} holds {', '.join(leftovers)} but no config.json, so "
                f"it is unknown what they belong to; give another --workdir"
            )
    if is_first_process():
        check_can_be_written("--workdir", folder.root)
    if config.checkpoint.init_from is not None and not has_checkpoint(folder):
        source = find_run(config.checkpoint.init_from)
        if not has_checkpoint(source):
            raise UserError(
                f"config key checkpoint.init_from is {config.checkpoint.init_from!r}: folder "
                f"{str(source.root)!r} holds no checkpoints; give the folder of a run or of an "
                f"imported model"
            )
    return folder


@contextlib.contextmanager
def to_ourselves(folder: RunFolder) -> Iterator[None]:
    """Inside it no other job trains this run: two would write the same checkpoints and log.

    Raises:
        UserError: another one does, in all processes of this job.
    """
    with contextlib.ExitStack() as stack:

        def take() -> None:
            if is_first_process():
                folder.root.mkdir(parents=True, exist_ok=True)
                busy = (
                    f"another process is training the run in {str(folder.root)!r}; wait for it, "
                    "end it, or give another --workdir"
                )
                stack.enter_context(locked(folder.lock, busy))

        everywhere(take)
        yield


def has_checkpoint(folder: RunFolder) -> bool:
    """Whether there is a finished checkpoint, readable or not."""
    return any(path.name.isdecimal() for path in folder.checkpoints.glob("*"))


def write_config(folder: RunFolder, config: Config) -> None:
    """Makes the folder the run's own: its configuration, paths being absolute, and its tokenizer.
    To be called after all checks, so that a call with a mistake leaves no run behind.

    Of a run that goes on, config.json stays that of its start, but for `train.steps` (each
    checkpoint has all keys as they were when it was saved). Where that changes, the old file is
    kept as `config_of_length`.

    Raises:
        UserError: the folder can't be made or written to.
    """
    if not is_first_process():
        return
    try:
        if folder.config.exists():
            _set_length(folder, config.train.steps)
            return
        folder.root.mkdir(parents=True, exist_ok=True)
        source = pathlib.Path(config.data.tokenizer)
        if source.is_file() and source.resolve() != folder.tokenizer:
            _write_whole(folder.tokenizer, source.read_bytes())
        _write_whole(folder.config, absolute(config).to_json().encode())
    except OSError as error:
        raise UserError(
            f"--workdir {str(folder.root)!r} can't be written to: {error.strerror}; give another "
            f"folder"
        ) from None


def _set_length(folder: RunFolder, steps: int) -> None:
    before = folder.read_config().train.steps
    if before == steps:
        return
    text = folder.config.read_text()
    _write_whole(folder.config_of_length(before), text.encode())
    values = json.loads(text)
    values.setdefault("train", {})["steps"] = steps
    _write_whole(folder.config, (json.dumps(values, indent=2) + "\n").encode())


def _write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that a killed run leaves whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def own_tokenizer(folder: RunFolder, config: Config) -> Config:
    """The configuration with the run's own copy of the tokenizer, where the run has one.

    Raises:
        UserError: the configuration names another tokenizer than the run's.
    """
    if not folder.tokenizer.is_file():
        return config
    given = config.data.tokenizer
    if given == "byte" or pathlib.Path(given).is_file():
        if load_tokenizer(given).hash != load_tokenizer(str(folder.tokenizer)).hash:
            raise UserError(
                f"folder {str(folder.root)!r} belongs to a run with another tokenizer than "
                f"data.tokenizer {given!r}; give another --workdir, or that run's own "
                f"{str(folder.tokenizer)!r}"
            )
    return _with_tokenizer(config, str(folder.tokenizer))


def check_data(folder: RunFolder, record: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares what a run was trained and evaluated on with what it is to go on with.

    Args:
        record: what data.json is to have, by the name of the set.

    Raises:
        UserError: data are not the ones that the run began with, wherever they lie.
    """
    try:
        before = json.loads(folder.data_record.read_text())
        known = {name: data["fingerprint"] for name, data in before.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # none yet, or damaged: the checkpoint still tells about the training data
    now = {name: data["fingerprint"] for name, data in record.items()}
    for name in [*known, *(name for name in now if name not in known)]:
        if known.get(name) != now.get(name):
            what = "is new" if name not in known else "is missing" if name not in now else "differs"
            raise UserError(
                f"the data of folder {str(folder.root)!r} have changed since the run began: "
                f"{name!r} {what}; give another --workdir, or the same data"
            )


def absolute(config: Config) -> Config:
    """The configuration with absolute paths, which mean the same from every working directory."""
    data, init_from = config.data, config.checkpoint.init_from
    sets = [f"{name}={_absolute(path)}" for name, path in validation_sets(data).items()]
    data = dataclasses.replace(
        data,
        path=_absolute(data.path),
        validation_path=data.validation_path and _absolute(data.validation_path),
        validation_sets=",".join(sets) or None,
        tokenizer="byte" if data.tokenizer == "byte" else _absolute(data.tokenizer),
    )
    checkpoint = dataclasses.replace(
        config.checkpoint, init_from=init_from and str(find_run(init_from).root)
    )
    own = config.task.own
    places = {
        field.name: str(pathlib.Path(getattr(own, field.name)).expanduser().absolute())
        for field in dataclasses.fields(own)
        if field.metadata.get("place") and getattr(own, field.name)
    }
    task = dataclasses.replace(config.task, own=dataclasses.replace(own, **places))
    return dataclasses.replace(config, data=data, checkpoint=checkpoint, task=task)


def _absolute(paths: str) -> str:
    """The absolute form of a path, or of each path of a mixture."""
    parts = [
        (name if name in NO_PLACES else str(pathlib.Path(name).absolute()), weight)
        for name, weight in parse_mixture(paths)
    ]
    if len(parts) == 1:
        return parts[0][0]
    return ",".join(f"{name}:{weight!r}" for name, weight in parts)


def _with_tokenizer(config: Config, name: str) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=name))


def _check_same(folder: RunFolder, config: Config) -> None:
    there, given = flat(folder.read_config()), flat(absolute(config))
    free = {*PLACES, *(key.name for key in keys() if key.may_change)}
    free |= {key.name for key in keys() if key.place and key.name.startswith("task.")}
    if has_checkpoint(folder):  # from which the run goes on, whatever its first parameters were
        free.add("checkpoint.init_from")
    if not config.optimizer.follows_length:  # no step would have been another one
        free.add("train.steps")
    differing = [
        f"{key} is {there.get(key)!r} there and {given.get(key)!r} here"
        for key in sorted(there.keys() | given.keys())
        if there.get(key) != given.get(key) and key not in free
    ]
    if there["data.tokenizer"] == "byte" != config.data.tokenizer:
        differing.append(f"data.tokenizer is 'byte' there and {config.data.tokenizer!r} here")
    if differing:
        shown = "; ".join(differing[:10]) + (
            f"; and {len(differing) - 10} more" if len(differing) > 10 else ""
        )
        message = (
            f"folder {str(folder.root)!r} belongs to a run with another configuration: {shown}. "
            "Give another --workdir, or the same configuration to resume that run"
        )
        if config.optimizer.follows_length and there["train.steps"] != given["train.steps"]:
            message += (
                "; its learning rate follows train.steps, so that it can't be made longer: to "
                f"train on, begin another run with {longer(folder.root, config)}"
            )
        raise UserError(message)


def longer(workdir: str | os.PathLike, config: Config) -> str:
    """What to give in order to train further than `train.steps`."""
    if config.optimizer.follows_length:
        return f"--config.checkpoint.init_from={shlex.quote(str(workdir))}"
    return f"--config.train.steps={2 * config.train.steps}"


def write_data_record(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Writes data.json, once for all processes."""
    if is_first_process():
        _write_whole(folder.data_record, (json.dumps(record, indent=1) + "\n").encode())
