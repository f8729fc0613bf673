"""Checkpoints that can't be read or written: what is wrong with them, and where they go."""

import errno
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import absl.logging

from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import RunFolder

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedCheckpoint(UserError):
    """A checkpoint can't be read."""


def guarded(path: pathlib.Path, step: int, read: Callable[[], Any]) -> Any:
    """The result of `read`; whatever it raises becomes a `DamagedCheckpoint`."""
    silence_orbax()
    try:
        return read()
    except Exception as error:  # Orbax and TensorStore raise many types for a broken file
        raise DamagedCheckpoint(
            f"checkpoint {str(path / str(step))!r} is damaged: {first_line(error)}"
        ) from error


def silence_orbax() -> None:
    """Keeps Orbax from printing pages about an error that it raises as well."""
    absl.logging.get_absl_logger().addFilter(_not_orbax_error)
    logging.getLogger("asyncio").addFilter(_not_a_later_error)
    if sys.unraisablehook is not _show_unless_loop_is_closed:
        global _show
        _show, sys.unraisablehook = sys.unraisablehook, _show_unless_loop_is_closed


_show = sys.unraisablehook


def _show_unless_loop_is_closed(unraisable) -> None:
    # When one array can't be read or written, Orbax closes its event loop; the other arrays then
    # end with tracebacks of no use.
    if "Event loop is closed" not in str(unraisable.exc_value):
        _show(unraisable)


def _not_orbax_error(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelname != "ERROR"


def _not_a_later_error(record: logging.LogRecord) -> bool:
    """Orbax raises the first error of its parallel writes; asyncio would print all others."""
    return not record.getMessage().startswith("Future exception was never retrieved")


def unlistable(path: pathlib.Path) -> dict[int, str]:
    """Step -> what is wrong, of the checkpoints that would keep Orbax from listing all others.

    It reads the metrics and the metadata of every one of them for its list. What has another name
    than a step's is left alone: Orbax removes its own unfinished folders.
    """
    damaged = {}
    for folder in path.glob("*"):
        if not folder.name.isdecimal() or not folder.is_dir():
            continue
        if not _has_loss(folder / "metrics" / "metrics"):
            damaged[int(folder.name)] = "its held-out loss can't be read"
        elif not _has_metadata(folder / "_CHECKPOINT_METADATA"):
            damaged[int(folder.name)] = "its metadata can't be read"
    return damaged


def _has_loss(file: pathlib.Path) -> bool:
    """Whether a checkpoint's metrics are a loss or nothing; True where there is no file."""
    try:
        metrics = json.loads(file.read_bytes())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and isinstance(metrics.get("loss", 0.0), int | float)


def _has_metadata(file: pathlib.Path) -> bool:
    """Whether Orbax can list a checkpoint with this file of metadata: it can where the file is
    missing or is no JSON, but not where it is JSON and no object.
    """
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError):
        return True


def set_aside(folder: RunFolder, step: int, reason: object) -> None:
    """Moves a checkpoint out of the way and says so; nothing is deleted."""
    place = folder.damaged_checkpoints / str(step)
    while place.exists():
        place = place.with_name(f"{place.name}_again")
    place.parent.mkdir(exist_ok=True)
    (folder.checkpoints / str(step)).rename(place)
    print(
        f"checkpoint of step {step} is passed over ({reason}); it is now {place}",
        file=sys.stderr,
        flush=True,
    )


def is_full_disk(error: BaseException | None) -> bool:
    """Whether there was no room for a file: by the error's number, which TensorStore has in its
    text.
    """
    while error is not None:
        numbers = {
            getattr(error, "errno", None),
            *map(int, re.findall(r"os_error_code='(\d+)'", str(error))),
        }
        if numbers & set(NO_ROOM):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: Exception) -> str:
    """An error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
