"""The exception type for mistakes that a person can mend."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something the user gave is wrong: the message names the thing, its value and the remedy.

    All commands print it as one line, without a traceback, and end with status 2.
    """


class Diverged(UserError):
    """Training is beyond help: the loss is no number. In a grid of runs that is a result."""


def reason(error: Exception) -> str:
    """What an exception says, where the path of a file is named beside it already."""
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def backend_of(key: str, value: str | None) -> Iterator[None]:
    """Inside it, a kernel backend that the config asks for and that can't serve the model becomes a
    `UserError` naming the key.
    """
    try:
        yield
    except NotImplementedError as error:
        if value is None:
            raise
        raise UserError(
            f"config key {key} is {value!r}, which can't be used here: {error} Unset takes the "
            f"best that can"
        ) from error
