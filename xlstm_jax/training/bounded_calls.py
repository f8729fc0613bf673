"""Calls of a library that may never return, from which the caller comes back in time."""

import threading
from collections.abc import Callable


class TimedOut(TimeoutError):
    """A call did not return in time; it may still do so."""


class BoundedCalls:
    """Makes calls one after another in threads of their own, and waits `seconds` for each.

    Python can't stop a thread. A call that does not return in time goes on where it is, and none is
    made beside it: the next one waits for it first.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: _Call | None = None

    @property
    def hanging(self) -> bool:
        """Whether a call has not returned."""
        return self._open is not None and not self._open.returned.is_set()

    def __call__(self, action: Callable[[], object]) -> None:
        """Raises what `action`, or the call that hung before it, raises.

        Raises:
            TimedOut: it did not return in time, or the one before it still hangs.
        """
        if self._open is not None:
            self._wait()
        self._open = _Call(action)
        self._wait()

    def _wait(self) -> None:
        if not self._open.returned.wait(self._seconds):
            raise TimedOut(f"no answer within {self._seconds:g} s")
        done, self._open = self._open, None
        if done.error is not None:
            raise done.error


class _Call:
    def __init__(self, action: Callable[[], object]) -> None:
        self._action, self.returned = action, threading.Event()
        self.error: Exception | None = None
        # a daemon: the process may end while it hangs
        threading.Thread(target=self._run, name="bounded call", daemon=True).start()

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self.error = error
        finally:
            self.returned.set()
