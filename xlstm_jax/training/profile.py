"""`--profile=start:stop`: a trace of some steps, for TensorBoard's profile plugin or xprof."""

import pathlib
from typing import Any

import jax


class Profile:
    """Traces steps `first` to `last` into a folder; None: no step."""

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps, self._running = folder, steps, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """A step is about to be dispatched."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """A step was dispatched; after the last one the trace waits for its result."""
        if self._running and step == self._steps[1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
