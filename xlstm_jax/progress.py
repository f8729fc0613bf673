"""Says what a command is doing while it is silent, how long things take, and how many they are."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

FIRST, AGAIN = 1.5, 60.0  # seconds of silence before the first line, and between those after it


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
