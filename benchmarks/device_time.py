"""How long a jitted program takes on the device: the profiler's times, or wall clock where it has
none.
"""

import collections
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from pallas_kernels.dispatch import target_device


def seconds(program: Callable, inputs: Any, repetitions: int) -> tuple[float, str]:
    """(median time of a call, "device" or "wall")."""
    for _ in range(2):
        jax.block_until_ready(program(*inputs))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        results = [program(*inputs) for _ in range(2)]
        jax.block_until_ready(results)
        rounds.append((time.perf_counter() - start) / 2)
    wall = statistics.median(rounds)
    if target_device()[0] == "cpu":
        return wall, "wall"
    with profiled() as events:
        for _ in range(repetitions):
            jax.block_until_ready(program(*inputs))
    device = per_call(((event.start, event.seconds) for event in events), repetitions)
    return (device, "device") if device else (wall, "wall")


class Event(NamedTuple):
    """Something that ran on the device: a GPU's kernel, a TPU's program; times in seconds."""

    name: str
    start: float
    seconds: float


@contextlib.contextmanager
def profiled() -> Iterator[list[Event]]:
    """Gives a list that is filled at the end with what ran on the devices in between; empty where
    the profiler sees none.
    """
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield events
        for file in pathlib.Path(folder).rglob("*.xplane.pb"):
            events.extend(device_events(file))


def device_events(file: pathlib.Path) -> Iterable[Event]:
    """What ran on the device: a TPU's programs, a GPU's kernels."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if not plane.name.startswith("/device:"):
            continue
        lines = list(plane.lines)
        modules = [line for line in lines if line.name == "XLA Modules"]
        for line in modules or [line for line in lines if line.name.startswith("Stream")]:
            for event in line.events:
                yield Event(event.name, event.start_ns / 1e9, event.duration_ns / 1e9)


def kernels_of(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """`by_name` of one call that waits for its results; empty where the profiler sees no device."""
    with profiled() as events:
        call()
    return by_name(events, 1)


def by_name(events: Iterable[Event], calls: int, most: int = 80) -> list[dict[str, Any]]:
    """The names that took most of the time: milliseconds and number of events of one call."""
    sums = collections.defaultdict(lambda: [0.0, 0])
    for event in events:
        sums[event.name][0] += event.seconds
        sums[event.name][1] += 1
    longest = sorted(sums.items(), key=lambda item: -item[1][0])[:most]
    return [
        {"kernel": name, "ms": seconds * 1e3 / calls, "calls": number / calls}
        for name, (seconds, number) in longest
    ]


def per_call(events: Iterable[tuple[float, float]], calls: int) -> float | None:
    """Median over calls of the time their events took; None if the events can't be shared out
    evenly, or there are none.
    """
    events = sorted(events)
    if not events or len(events) % calls:
        return None
    size = len(events) // calls
    return statistics.median(
        sum(duration for _, duration in events[i : i + size]) for i in range(0, len(events), size)
    )
