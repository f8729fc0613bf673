"""Ctrl-C and other signals end a command's process in time, whatever it is doing.

Python runs a signal's handler in the main thread, and not before that thread is back in Python. A
compiler, a collective or a write to a dead disk may keep it for minutes or for ever. Therefore a
second thread hears of each signal at once, by the file descriptor of `signal.set_wakeup_fd`, gives
the main thread a set time to end by itself, and ends the process after that.

A process that was interrupted ends by `os._exit`. The interpreter's own way out takes down the
libraries while XLA's threads still compile, which is a segmentation fault (status 139). What is
written to files is safe: whatever replaces a file is written beside it and renamed.
"""

import _thread
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, try again
STATUS = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_PREEMPTED}
NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "SIGTERM"}
ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = (ROOT / "train.py", ROOT / "eval.py")
SCRIPTS = ("xlstm-train", "xlstm-eval", "xlstm-generate", "xlstm-prepare")  # of pyproject.toml
SECONDS_TO_CLEAN_UP = 2.0  # after Ctrl-C, for a main thread that is in Python
SECONDS_TO_LEAVE = 10.0  # for what libraries do at the end, where one of them hangs


class Preempted(BaseException):
    """A run was asked to end; the message says what is saved.

    It may come from a signal's handler, in the middle of anything: `except Exception` must not take
    it for an error there, for example for a damaged checkpoint.

    Attributes:
        status: of the process: 75 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int = EXIT_PREEMPTED) -> None:
        super().__init__(message)
        self.status = status


class Terminated(Preempted):
    """SIGTERM came while a command ran that saves nothing at it."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a signal ends a process whose main thread does not end it.

    Attributes:
        seconds: from the first signal until the process is ended.
        status: of the process then.
        words: the line that it leaves; called from another thread.
        again: whether a second signal ends it at once.
    """

    seconds: float
    status: int
    words: Callable[[], str]
    again: bool = False


_rules: dict[int, Rule] = {}
_ending = threading.Lock()  # one thread alone ends the process, with one line
_pipe: tuple[int, int] | None = None  # of the watch, where there is one
_stderr = 2  # where a last line goes
_hanging = threading.Event()  # a library's thread or process is not to be waited for


def run(command: Callable[[], None], advice: str = "") -> int:
    """Runs a command; returns 0, or 130 after Ctrl-C.

    Where the command is the program of this process (it was defined in `__main__`, or a script
    called it), Ctrl-C doesn't return but ends the process, and so does SIGTERM, with status 75. A
    `KeyboardInterrupt` with a text says that instead.

    Args:
        advice: what to do after either, for example "the same command goes on".
    """
    own = getattr(command, "__module__", None) == "__main__" or (is_command() and _pipe is None)
    if own:
        install_hooks()
    with watch(advice) if own else contextlib.nullcontext():
        try:
            command()
        except (KeyboardInterrupt, Terminated) as interrupt:
            number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
            line = str(interrupt) or _words(number, advice)
            if own:
                for ignored in STATUS:
                    signal.signal(ignored, signal.SIG_IGN)
                flush()
                end_process(STATUS[number], line)
            print(line, file=sys.stderr, flush=True)
            return STATUS[number]
    return 0


def _words(number: int, advice: str) -> str:
    return "; ".join(filter(None, (NAMES[number], advice)))


def is_command() -> bool:
    """Whether this process was started as one of the project's commands; known before its imports.

    While `python -m xlstm_jax.NAME` imports the package, Python has "-m" in sys.argv[0].
    """
    if sys.argv[:1] == ["-m"]:
        return True
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if program is None:
        return False
    path = pathlib.Path(program)
    return path.name in SCRIPTS or path.resolve() in PROGRAMS


def install_hooks() -> None:
    """Ctrl-C that nobody catches is one line and status 130 too, also where Python would drop it;
    SIGTERM is one line and status 75 before there is a `watch`.

    For a process that belongs to one command. Imports take seconds and come before `run`. Some of
    jax's callbacks can't raise: Python prints what they raise, here what a signal's handler raised,
    and goes on; then the handler is called again.
    """
    # A process that ends at once leaves its workers' shared memory to Python's resource tracker,
    # a process of its own, which cleans up and would print a warning about it.
    warnings = filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"))
    os.environ["PYTHONWARNINGS"] = ",".join(warnings)
    show, show_unraisable = sys.excepthook, sys.unraisablehook

    def uncaught(kind, value, traceback) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            return show(kind, value, traceback)
        end_process(EXIT_INTERRUPTED, str(value) or "interrupted")

    def dropped(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            number = signal.SIGINT
        elif issubclass(unraisable.exc_type, Preempted):
            number = signal.SIGTERM
        else:
            return show_unraisable(unraisable)
        again = threading.Timer(0.05, _thread.interrupt_main, [number])
        again.daemon = True
        again.start()

    sys.excepthook, sys.unraisablehook = uncaught, dropped
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_early)


def _end_early(number: int, frame: FrameType | None) -> None:
    """SIGTERM while nothing runs that has to be saved. A worker process ends without a word."""
    is_worker = multiprocessing.parent_process() is not None
    end_process(STATUS[number], None if is_worker else NAMES[number])


@contextlib.contextmanager
def watch(advice: str = "") -> Iterator[None]:
    """Inside it, Ctrl-C and SIGTERM end the process within `SECONDS_TO_CLEAN_UP`, with status 130
    and 75 and one line; `rule` sets other rules. A SIGTERM that the process was started to ignore
    stays ignored.

    For a process that belongs to one command, not for a notebook; from the main thread.
    """
    global _pipe
    _pipe = os.pipe()
    for end in _pipe:
        os.set_blocking(end, False)
    for number, status in STATUS.items():
        words = functools.partial(_words, number, advice)
        _rules[number] = Rule(SECONDS_TO_CLEAN_UP, status, words, again=number == signal.SIGINT)
    before_sigterm = signal.getsignal(signal.SIGTERM)
    ours = before_sigterm in (signal.SIG_DFL, _end_early)
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    before = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    # A daemon: it also watches while the interpreter waits for other threads at its end.
    threading.Thread(target=_listen, args=(_pipe[0],), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before_sigterm)
        signal.set_wakeup_fd(before)
        _tell(STOP)
        _pipe = None
        _rules.clear()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated("")


def take_back(number: int) -> None:
    """Python's handler of a signal again, where a library has put its own in its place; nothing in
    other threads than the first, which may not.
    """
    handler = signal.getsignal(number)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


@contextlib.contextmanager
def rule(number: int, new: Rule) -> Iterator[None]:
    """Inside it, another rule holds for a signal; nothing where there is no `watch`."""
    before = rule_of(number)
    set_rule(number, new)
    try:
        yield
    finally:
        set_rule(number, before)


def rule_of(number: int) -> Rule | None:
    """The rule that holds for a signal; None: it ends nothing."""
    return _rules.get(number)


def set_rule(number: int, new: Rule | None) -> None:
    """From now on this rule holds for a signal; None: it ends nothing."""
    if _pipe is None:
        return
    if new is None:
        _rules.pop(number, None)
    else:
        _rules[number] = new


def dealt_with() -> None:
    """A `KeyboardInterrupt` was caught and the process goes on: its time no longer runs."""
    if _pipe is not None:
        _tell(DEALT_WITH)


def received(number: int) -> None:
    """Says that a signal came which another library's handler took."""
    if _pipe is not None:
        _tell(number)


def end_process(status: int, line: str | None = None) -> None:
    """Ends this process and those that it started, now, with one line on stderr; never returns.

    It takes no lock that another thread may hold: the line goes straight to the file descriptor.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is about to end the process
    if line is not None:
        write_line(line)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


def do_not_wait() -> None:
    """Something that was started does not end, and would also keep the interpreter from ending:
    `leave` is not to wait for it.
    """
    _hanging.set()


def leave(status: int) -> NoReturn:
    """Ends a command's process as `sys.exit` does; after `do_not_wait` in bounded time."""
    if _hanging.is_set():

        def end() -> None:
            time.sleep(SECONDS_TO_LEAVE)
            flush()
            end_process(status)

        threading.Thread(target=end, name="leave", daemon=True).start()
    sys.exit(status)


def flush() -> None:
    """Writes what lies in the buffers of stdout and stderr, as far as somebody reads it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


STOP, DEALT_WITH = 0, 255  # no signals have these numbers


def _tell(byte: int) -> None:
    with contextlib.suppress(OSError):
        os.write(_pipe[1], bytes([byte]))


def _listen(pipe: int) -> None:
    asked: dict[int, float] = {}  # signal -> when it came first
    while True:
        select.select([pipe], [], [], 0.05 if asked else None)
        with contextlib.suppress(BlockingIOError):
            for number in os.read(pipe, 64):
                if number == STOP:
                    return
                if number == DEALT_WITH:
                    asked.clear()
                elif number in _rules:
                    if number in asked and _rules[number].again:
                        _end_by(_rules[number])
                    asked.setdefault(number, time.monotonic())
        for number, since in asked.items():
            # looked up each time: what the main thread is doing may have changed the rule
            if (found := _rules.get(number)) and time.monotonic() - since >= found.seconds:
                _end_by(found)


def _end_by(found: Rule) -> None:
    # Another thread may hold the stream's lock for ever, so that a flush must not be waited for.
    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(0.5)
    end_process(found.status, found.words())


def write_line(line: str) -> None:
    """A line on stderr that waits for no lock; also for a signal's handler."""
    data = (" ".join(line.split()) + "\n").encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        os.write(_stderr, data)


@contextlib.contextmanager
def stderr_dropped() -> Iterator[None]:
    """Drops what is written on stderr inside it, by C++ code too, but for `write_line`; exceptions
    are raised.
    """
    global _stderr
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    _stderr = kept
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        _stderr = 2
        os.close(kept)
        os.close(nowhere)
