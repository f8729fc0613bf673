"""A run's directory: what lies where, and who may write to it."""

import dataclasses
import json
import pathlib
from typing import Any

from xlstm_jax.config import Config, from_json
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import is_first_process

# Keys, or their beginnings, with which a run may go on differently: how it is computed, kept and
# shown, not what is computed.
MAY_CHANGE = (
    "mesh.", "model.remat", "model.mlstm_backend", "model.slstm_backend", "model.chunk_size", "data.workers", "train.accumulation_steps",
    "train.watchdog_", "train.heartbeat_seconds", "train.grace_seconds", "checkpoint.keep_", "log.",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    root: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved configuration."""
        return self.root / "config.json"

    @property
    def data_record(self) -> pathlib.Path:
        """The files that the tokens came from, with their hashes."""
        return self.root / "data.json"

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

    def read_config(self) -> Config:
        """The run's own configuration; raises `UserError` where the folder is no run."""
        if not self.config.is_file():
            raise UserError(
                f"folder {str(self.root)!r} holds no config.json, so it is no run; give the "
                f"--workdir of a training run"
            )
        try:
            return from_json(self.config.read_text())
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{self.config} can't be used: {error}; restore it or start in another folder"
            ) from None


def find_run(root: str | pathlib.Path) -> RunFolder:
    """A run that exists."""
    return RunFolder(pathlib.Path(root).expanduser().resolve())


def open_run(root: str | pathlib.Path, config: Config) -> RunFolder:
    """The folder of a new run, or of one that is to go on: with the same configuration, but for the
    keys of `MAY_CHANGE`.

    Nothing is written yet; config.json stays that of the run's start, each checkpoint has its own.

    Raises:
        UserError: the folder belongs to a run with another configuration, or holds a run's files
            without config.json.
    """
    folder = find_run(root)
    if folder.config.exists():
        _check_same(folder, config)
        return folder
    if folder.root.exists() and not folder.root.is_dir():
        raise UserError(f"--workdir {str(folder.root)!r} is a file; give a folder")
    leftovers = [
        path.name for path in (folder.metrics, folder.checkpoints, folder.samples) if path.exists()
    ]
    if leftovers:
        raise UserError(
            f"folder {str(folder.root)!r} holds {', '.join(leftovers)} but no config.json, so it "
            f"is unknown what they belong to; "
            "give another --workdir"
        )
    return folder


def write_config(folder: RunFolder, config: Config) -> None:
    """Makes the folder the run's own. Done when all else is known to be good: a mistake mended
    later needs no other folder.

    Raises:
        UserError: the folder can't be made or written to.
    """
    if folder.config.exists() or not is_first_process():
        return
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        unfinished = folder.config.with_name("config.json.tmp")
        unfinished.write_text(config.to_json())
        unfinished.replace(folder.config)  # at once: a killed run leaves no half of a file
    except OSError as error:
        raise UserError(
            f"--workdir {str(folder.root)!r} can't be written to: {error.strerror}; give another "
            f"folder"
        ) from None


def _check_same(folder: RunFolder, config: Config) -> None:
    there, given = (
        _flat(json.loads(folder.read_config().to_json())),
        _flat(json.loads(config.to_json())),
    )
    differing = [
        f"{key} is {there.get(key)!r} there and {given.get(key)!r} here"
        for key in sorted(there.keys() | given.keys())
        if there.get(key) != given.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if differing:
        shown = "; ".join(differing[:10]) + (
            f"; and {len(differing) - 10} more" if len(differing) > 10 else ""
        )
        raise UserError(
            f"folder {str(folder.root)!r} belongs to a run with another configuration: {shown}. "
            f"Give another --workdir, or the "
            "same configuration to resume that run"
        )


def _flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, keys in sections.items()
        for key, value in keys.items()
    }


def write_data_record(folder: RunFolder, text: str) -> None:
    """Writes data.json, once for all processes."""
    if is_first_process():
        folder.data_record.write_text(text)
