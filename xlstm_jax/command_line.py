"""What the entry points share: flags of their own `FlagValues`, and errors of the user as one line
instead of a traceback.
"""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from xlstm_jax import interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.paths import check_can_be_written, refuse_address

EXIT_USER_ERROR = 2
EXIT_READER_GONE = 128 + signal.SIGPIPE  # as a shell reports a program that SIGPIPE ended
# the flags, of all commands, whose value is a path
PATHS = ("workdir", "checkpoint", "source", "output", "session", "data", "paloma", "task_folder",
         "tokenizer", "aot-details")  # fmt: skip
# errors of the system that only the user can mend, wherever they come up
NOT_POSSIBLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
WIDTH = 100  # columns of the help and of sentences
# Control characters but for tab and line feed. A terminal obeys them: it clears itself, moves its
# cursor, changes its title.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS = {code: name for code, name in _CONTROLS.items() if chr(code) not in "\t\n"}
MOST = 2**53  # as good as no limit, and still exact as a float


def run(command: Callable[[], None], advice: str = "") -> int:
    """Runs a command and returns the process's exit status.

    A `UserError`, or a path that the system refuses, is printed as one line on stderr, and so is
    Ctrl-C (`interrupts.run`), with `advice`. Where the reader of the output is gone (`... | head`),
    the command ends without a word. What stdout's encoding lacks is written as \\xe9, like stderr.
    """
    with contextlib.suppress(AttributeError):  # a notebook's stdout
        sys.stdout.reconfigure(errors="backslashreplace")
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
    argv: Sequence[str],
    usage: str,
    strings: Mapping[str, str],
    without: Callable[[Sequence[str]], Sequence[str]] = list,
    more_help: str = "",
) -> flags.FlagValues:
    """The flags of a command line, argv[0] being the program.

    Args:
        usage: printed by --help.
        strings: name -> meaning of the flags with a text as value; all may be left out.
        without: leaves out the arguments that somebody else reads (`config_flags.without_config`).
        more_help: printed by --help behind the flags.

    Raises:
        UserError: an unknown flag, a flag without its value, an address where a path belongs, an
            --output that can't be written to.
        SystemExit: after --help.
    """
    values = flags.FlagValues()
    for name, meaning in strings.items():
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    if {"--help", "-h", "--helpfull"} & set(argv[1:]):
        print(usage.rstrip(), "", *_described(strings), sep="\n")
        if more_help:
            print("", more_help, sep="\n")
        sys.stdout.flush()
        raise SystemExit(0)
    try:
        rest = values(list(without(argv)))[1:]
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


def _described(strings: Mapping[str, str]) -> list[str]:
    """Flags and their meanings, in lines that fit a terminal."""
    return [
        line
        for name, meaning in strings.items()
        for line in wrapped(f"  --{name}: {meaning}", "      ")
    ]


def wrapped(sentence: str, indent: str = "  ") -> list[str]:
    """A sentence in lines that fit a terminal; words, of which a path may be one, stay whole."""
    return textwrap.wrap(
        sentence, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def printable(text: str) -> str:
    r"""Text of a model or of data for a terminal: control characters as \x1b."""
    return text.translate(_CONTROLS)


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
