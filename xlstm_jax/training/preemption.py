"""SIGTERM, which a scheduler sends before it takes the machines away: all processes save at the
same step and end.
"""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75  # sysexits.h: EX_TEMPFAIL, try again


class Preempted(Exception):
    """The run was asked to end, and is saved; the same command goes on with it."""


class Preemption:
    """Listens for SIGTERM while it is open."""

    def __init__(self) -> None:
        self._asked = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # With several processes jax's own service listens. Other threads than the first may not; a
        # notebook's cells run in the first.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether this is the step to save at and end; true at the same step in all processes,
        whichever got the signal.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
