"""How long a jitted program takes on the device: the profiler's times, or wall clock where it has
none.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

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
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repetitions):
                jax.block_until_ready(program(*inputs))
        events = [
            event
            for file in pathlib.Path(folder).rglob("*.xplane.pb")
            for event in device_events(file)
        ]
    device = per_call(events, repetitions)
    return (device, "device") if device else (wall, "wall")


def device_events(file: pathlib.Path) -> Iterable[tuple[float, float]]:
    """(start, duration) in seconds of what ran on the device: a TPU's programs, a GPU's kernels."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if not plane.name.startswith("/device:"):
            continue
        lines = list(plane.lines)
        modules = [line for line in lines if line.name == "XLA Modules"]
        for line in modules or [line for line in lines if line.name.startswith("Stream")]:
            yield from ((event.start_ns / 1e9, event.duration_ns / 1e9) for event in line.events)


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
