"""Says what a command is doing while it is silent and how far it is, how long things take, and how
many and how large they are.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator

import tqdm

FIRST, AGAIN = 1.5, 60.0  # seconds of silence before the first line, and between those after it
SILENT_SECONDS = 2  # work that is done earlier shows no bar
LINES_EVERY_SECONDS = 30  # in a log file, where each state of the bar stays as a line


def _print(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def doing(what: str, say: Callable[[str], None] = _print) -> Iterator[None]:
    """Inside it a line says what is done, after `FIRST` seconds and then every `AGAIN` seconds.

    Work that is quicker says nothing.

    Args:
        what: for example "compiling the training step".
        say: takes a line; called from another thread, also while the main one is in a compiler.
    """
    over, started = threading.Event(), time.monotonic()

    def tell() -> None:
        if over.wait(FIRST):
            return
        say(f"{what} ...")
        while not over.wait(AGAIN):
            say(f"{what} ... {time.monotonic() - started:.0f} s so far")

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()  # so that its line never comes after the lines of what follows


def duration(seconds: float | None) -> str:
    """52s, 3m 05s, 2h 07m, 4d 03h."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    whole = round(seconds)
    for unit, name, below, below_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit}{name} {whole % unit // below:02}{below_name}"
    return f"{whole}s"


def counted(number: int, noun: str) -> str:
    """1 block, 2 blocks, 1,000 tokens; for nouns whose plural has an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sized(num_bytes: float) -> str:
    """Three digits and a unit that has them: 38 bytes, 1.73 kB, 34.4 GB, 1,210 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.3g} {unit}" if num_bytes < 999.5 else f"{num_bytes:,.0f} {unit}"


def bar(total: int, what: str, unit: str) -> tqdm.tqdm:
    """A bar on stderr for `total` units, which knows the time left and goes away at its end;
    `update(count)` moves it, `with` or `close()` ends it.
    """
    settings = dict(
        total=total,
        desc=what,
        unit=f" {unit}",
        unit_scale=total >= 10_000,
        delay=SILENT_SECONDS,
        smoothing=0.1,
        leave=False,
    )
    if getattr(sys.stderr, "isatty", bool)():
        return tqdm.tqdm(**settings, mininterval=0.5, dynamic_ncols=True, file=sys.stderr)
    line = "{desc}: {percentage:.0f}% of {total_fmt}{unit}, {rate_fmt}, time left {remaining}"
    settings |= {"mininterval": LINES_EVERY_SECONDS, "bar_format": line + "{postfix}"}
    return _LogBar(**settings, file=_Lines())


class _LogBar(tqdm.tqdm):
    """A bar that its library's thread does not repeat every ten seconds."""

    monitor_interval = 0


class _Lines:
    """stderr, where what is to be written over the line before becomes a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
