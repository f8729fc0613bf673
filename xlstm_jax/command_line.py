"""What the entry points share: flags of their own `FlagValues`, and errors of the user as one line
instead of a traceback.
"""

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from xlstm_jax import config_flags, interrupts
from xlstm_jax.config import Config
from xlstm_jax.errors import UserError
from xlstm_jax.paths import check_can_be_written, refuse_address

EXIT_USER_ERROR = 2
EXIT_READER_GONE = 128 + signal.SIGPIPE  # as a shell reports a program that SIGPIPE ended
# the flags, of all commands, whose value is a path
PATHS = ("workdir", "checkpoint", "source", "output", "session", "data", "paloma", "task_folder",
         "tokenizer")  # fmt: skip
# errors of the system that only the user can mend, wherever they come up
NOT_POSSIBLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
MOST = 2**53  # as good as no limit, and still exact as a float


def run(command: Callable[[], None], advice: str = "") -> int:
    """Runs a command and returns the process's exit status.

    A `UserError`, or a path that the system refuses, is printed as one line on stderr, and so is
    Ctrl-C (`interrupts.run`), with `advice`. Where the reader of the output is gone (`... | head`),
    the command ends without a word.
    """
    try:
        status = _status_of(command, advice)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_gone():  # a pipe to one of our own processes
            raise
        return EXIT_READER_GONE
    return status


def _status_of(command: Callable[[], None], advice: str) -> int:
    try:
        return interrupts.run(command, advice)
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in NOT_POSSIBLE or error.filename is None:
            raise
        return _refuse(f"{str(error.filename)!r}: {error.strerror}")


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _reader_gone() -> bool:
    """Whether nobody reads stdout or stderr any more. Such a stream goes nowhere from now on: when
    Python ends it writes what is left, which would fail again.
    """
    gone = False
    for stream in (1, 2):
        poll = select.poll()
        try:
            poll.register(stream, 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                gone = True
        except OSError:  # the stream is closed
            pass
    return gone


def parse(
    argv: Sequence[str], usage: str, strings: Mapping[str, str], *, with_config: bool = False
) -> flags.FlagValues:
    """The flags of a command line, argv[0] being the program.

    Args:
        usage: printed by --help.
        strings: name -> meaning of the flags with a text as value; all may be left out.
        with_config: also take --config=FILE[:VARIANT] and --config.section.key=value, which
            `config_of` reads.

    Raises:
        UserError: an unknown flag or config key, a flag without its value, an address where a path
            belongs, an --output that can't be written to.
        SystemExit: after --help.
    """
    values = flags.FlagValues()
    for name, meaning in strings.items():
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    if {"--help", "-h", "--helpfull"} & set(argv[1:]):
        print(usage)
        for name in strings:
            print(f"  --{name}: {strings[name]}")
        sys.stdout.flush()
        raise SystemExit(0)
    if with_config:
        argv = config_flags.take_apart(argv).rest
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise UserError(str(error)) from None
    if rest:
        raise UserError(
            f"argument {rest[0]!r} is not understood; write --name=value (--help lists the flags)"
        )
    for name in PATHS:
        if name in strings and values[name].value is not None:
            refuse_address(f"--{name}", values[name].value)
    if "output" in strings and values["output"].value:
        check_can_be_written("--output", values["output"].value)
    return values


def config_of(argv: Sequence[str]) -> Config:
    """The validated configuration that --config and its overrides name.

    Raises:
        UserError: there is no --config, or the configuration is not valid.
    """
    return config_flags.read(argv)


def text(values: flags.FlagValues, name: str, example: str) -> str:
    """The value of a flag that must be given."""
    if not values[name].value:
        raise UserError(f"--{name} is missing; give for example --{name}={example}")
    return values[name].value


def number(
    values: flags.FlagValues, name: str, least: int = 0, most: int | None = None
) -> int | None:
    """The value of an optional flag that must be a count from `least` to `most`."""
    given = values[name].value
    return None if given is None else whole(f"--{name}", given, least, most)


def whole(what: str, given: str, least: int = 0, most: int | None = None) -> int:
    """A count from `least` to `most` that is written as text.

    Raises:
        UserError: it is none; `what` names it.
    """
    # no more digits than int() reads, and none but 0 to 9
    count = int(given) if re.fullmatch(r"-?[0-9]{1,18}", given) else None
    if count is None or not least <= count <= (MOST if most is None else most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{what} is {given!r}; it must be a whole number {wanted}")
    return count


def span(values: flags.FlagValues, name: str) -> tuple[int, int] | None:
    """The value of an optional flag like 10:12: two counts, the second not below the first."""
    given = values[name].value
    if given is None:
        return None
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", given)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--{name} is {given!r}; it must be FIRST:LAST, for example 10:12")
    return int(match[1]), int(match[2])
