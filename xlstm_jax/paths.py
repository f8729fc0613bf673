"""Paths that a user gives, checked before any work starts, and folders that one process has for
itself.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from xlstm_jax.errors import UserError

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def refuse_address(what: str, path: str) -> None:
    """Raises `UserError` where a path is an address such as gs://bucket/run.

    Everything here reads and writes files of the machine. Without this check "gs://bucket/run"
    would be a folder "gs:" below the working directory.

    Args:
        what: names the flag or key in the message, for example "--workdir".
    """
    if ADDRESS.match(path):
        raise UserError(
            f"{what} is {path!r}, an address on the network; give a path of this machine, where a "
            f"bucket can be mounted (with gcsfuse, for example)"
        )


def refuse_no_text(what: str, path: str | pathlib.Path) -> None:
    """Raises `UserError` where the bytes of a path are not UTF-8, as in folders that an old system
    has named: the library that writes checkpoints takes no others.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what} is {str(path)!r}, which is not UTF-8, so that no checkpoint can be in it; "
            "rename the folder or give another one"
        ) from None


def check_can_be_written(what: str, folder: str | pathlib.Path) -> None:
    """Raises `UserError` unless files can be written to a folder, which need not exist yet.

    It is tried: permissions, a full or read-only disk and the kernel's own file systems all look
    alike before. The trial is a file without a name, in the folder or in the nearest one above it
    that exists: no other process sees anything of it, and several may try at once.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        for name in folder.relative_to(there).parts:  # is one of them too long?
            with contextlib.suppress(FileNotFoundError):
                (there / name).lstat()
    except NotADirectoryError:
        raise UserError(f"{what} {str(there)!r} is a file; give a folder") from None
    except OSError as error:
        raise UserError(
            f"{what} {str(folder)!r} can't be written to: {error.strerror}; give another folder"
        ) from None


@contextlib.contextmanager
def locked(file: pathlib.Path, busy: str) -> Iterator[None]:
    """Inside it no other process holds this file's lock. The system takes the lock back when the
    process ends, however it ends; the empty file stays.

    Raises:
        UserError: another process holds it; `busy` is the message.
    """
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError:  # a network file system without locks: as if nobody else were there
            pass
        yield
