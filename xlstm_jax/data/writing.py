"""Files that are there whole or not at all, and a full disk as one sentence.

Everything that the preparation writes goes to a `.partial` file beside its place and is renamed
when it is complete.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from xlstm_jax.errors import UserError

# Error numbers for a full disk, a quota that is used up, a file larger than `ulimit -f` allows.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PartialFile:
    """A file under another name until it is complete.

    Attributes:
        path: where it will be.
        file: to write to, in binary.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self.file = open(self._partial, "wb")

    def finish(self) -> None:
        """Puts the complete file in its place, safe from a loss of power."""
        with self.file as file:
            file.flush()
            os.fsync(file.fileno())
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Removes what was written, on a full disk too."""
        with contextlib.suppress(OSError):  # closing writes what the buffer still holds
            self.file.close()
        self._partial.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all, whenever the process ends."""
    partial = PartialFile(path)
    try:
        partial.file.write(content.encode() if isinstance(content, str) else content)
        partial.finish()
    except BaseException:
        partial.discard()
        raise


@contextlib.contextmanager
def explained(folder: pathlib.Path) -> Iterator[None]:
    """Inside it, what the system refuses (a full disk, a missing right) becomes a `UserError`.

    `folder` is where results are written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            raise UserError(
                f"no space is left for {str(folder)!r} ({reason}); make space, then the same "
                f"command goes on: what was finished is kept"
            ) from None
        raise UserError(
            f"{error.filename or str(folder)!r}: {reason}; when that is mended, the same command "
            f"goes on"
        ) from None
