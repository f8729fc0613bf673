"""Where the time goes: tokens per second, time left, and the share of wall time that was spent in
training steps.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Speed:
    """Tokens per second and time left, with compilation, evaluation and checkpoints left out."""

    def __init__(self, steps: int, clock: Callable[[], float] = time.perf_counter):
        self._steps, self._clock = steps, clock
        self._total_seconds, self._total_steps = 0.0, 0
        self._since: float | None = None
        self._tokens, self._done = 0, 0

    def pause(self) -> None:
        """Ends the window; the next step that is counted starts another and is not measured."""
        self._since = None

    def count(self, tokens: int) -> None:
        """One more step is done."""
        if self._since is None:
            self._since, self._tokens, self._done = self._clock(), 0, 0
            return
        self._tokens, self._done = self._tokens + tokens, self._done + 1

    def read(self, step: int) -> tuple[float | None, float | None]:
        """Tokens per second since the last call and seconds left after `step`; None where nothing
        was measured yet.
        """
        rate = None
        if self._since is not None and self._done:
            now = self._clock()
            seconds = max(now - self._since, 1e-9)
            rate = self._tokens / seconds
            self._total_seconds, self._total_steps = (
                self._total_seconds + seconds,
                self._total_steps + self._done,
            )
            self._since, self._tokens, self._done = now, 0, 0
        left = (
            (self._steps - step) * self._total_seconds / self._total_steps
            if self._total_steps
            else None
        )
        return rate, left


class WallTime:
    """How the time since a run's first start was spent, kept across restarts by the events of
    metrics.jsonl.

    What is neither waiting for data, compiling, saving nor evaluating counts as training. The time
    between a run's end and its resumption is lost, and so are steps that a killed run did after its
    last checkpoint: their events are gone.
    """

    PARTS = ("data", "compile", "checkpoint", "evaluation", "train")

    def __init__(
        self, records: Sequence[dict[str, Any]], clock: Callable[[], float] = time.time
    ) -> None:
        before = next((record for record in reversed(records) if "started" in record), {})
        self._clock, self._now = clock, clock()
        self._started = before.get("started", self._now)
        self._seconds = {part: before.get(f"{part}_seconds", 0.0) for part in self.PARTS}

    @contextlib.contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """What happens inside it belongs to `part`; what happened before it was training."""
        self._settle("train")
        yield
        self._settle(part)

    def _settle(self, part: str) -> None:
        now = self._clock()
        self._seconds[part] += now - self._now
        self._now = now

    def values(self) -> dict[str, float]:
        """The numbers of an event: unix time of the first start, seconds per part, and goodput, the
        share of training in all of it.
        """
        self._settle("train")
        wall = max(self._now - self._started, 1e-9)
        seconds = {f"{part}_seconds": round(value, 3) for part, value in self._seconds.items()}
        return {"started": self._started, **seconds, "goodput": self._seconds["train"] / wall}
