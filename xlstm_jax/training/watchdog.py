"""Tells where a run hangs."""

import faulthandler


class Watchdog:
    """Prints the stacks of all threads on stderr when a step takes longer than `seconds`; None:
    never.

    Python's own faulthandler does it from a thread of its own, also while the interpreter waits in
    a collective. With `ends` the process ends then with status 1.
    """

    def __init__(self, seconds: int | None, *, ends: bool) -> None:
        self._seconds, self._ends = seconds, ends

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exception) -> None:
        self.pause()

    def step(self) -> None:
        """A step begins: from now on it has `seconds`."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=self._ends)

    def pause(self) -> None:
        """What comes now (compilation, evaluation, a checkpoint) is no step."""
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
