"""Says what a command is doing while it is silent."""

import contextlib
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
