"""Where a run's events go, each of which may fail at any time: a disk is full, a service is away.

What fails is said once, the run goes on, and what could not be written is kept and tried again.
"""

import collections
import contextlib
import json
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import Summary

from xlstm_jax import interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.installation import install
from xlstm_jax.training.bounded_calls import BoundedCalls, TimedOut

# After a failure the next try waits 20 times as long as the failed one took: a service that does
# not answer for a minute costs a twentieth of the time at most.
WAIT_PER_SECOND_OF_FAILURE = 20
# Weights & Biases tries to send for days where it is not reached. What it has not sent by then lies
# in its own files.
SECONDS_FOR_WANDB = 60.0


class Trouble:
    """Tells of a writer's failure once, and when it works again."""

    def __init__(self, what: str) -> None:
        self._what, self.failing = what, False

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Whatever is raised inside it is told and goes no further; Ctrl-C does."""
        try:
            yield
        except Exception as error:
            if not self.failing:
                tell(f"{self._what} can't be written ({_line_of(error)}); training goes on")
            self.failing = True
        else:
            if self.failing:
                tell(f"{self._what} is written again")
            self.failing = False


class Outlet:
    """Takes a run's events and gives them to a writer, in order; what it can't take waits.

    Args:
        what: names it in messages.
        deliver: writes the events of a deque and removes them from it; may raise anything.
    """

    def __init__(
        self,
        what: str,
        deliver: Callable[[collections.deque], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._deliver, self._clock = what, deliver, clock
        self._waiting: collections.deque = collections.deque()
        self._trouble, self._not_before = Trouble(what), -float("inf")

    def put(self, *events: Any) -> None:
        """Writes them, and before them those that wait."""
        self._waiting.extend(events)
        if self._clock() >= self._not_before:
            self._try()

    def close(self) -> None:
        """A last try; says how many events are lost."""
        if self._waiting:
            self._try()
        if self._waiting:
            tell(f"{self._what}: {len(self._waiting)} entries could not be written and are lost")

    def _try(self) -> None:
        started = self._clock()
        with self._trouble.caught():
            self._deliver(self._waiting)
        ended = self._clock()
        if self._trouble.failing:
            self._not_before = ended + WAIT_PER_SECOND_OF_FAILURE * (ended - started)


class AppendedFile:
    """Appends to a file whole records or nothing, so that readers never meet half of one."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._whole: int | None = None  # the file's size before an append that failed

    def append(self, data: bytes) -> None:
        """Raises `OSError` where there is no room; what was written of it is removed at the next
        call, if not at once.
        """
        with open(self._path, "ab", buffering=0) as file:
            if self._whole is not None:
                file.truncate(self._whole)
            self._whole = file.seek(0, os.SEEK_END)
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                file.truncate(self._whole)
                raise
        self._whole = None


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside `path` and renames it, so that there is always a whole one."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


class TensorBoard:
    """Writes `Event`s to a file of its own.

    tensorboardX's own writer does so from a thread, which dies when the disk is full; then training
    waits for it for ever.
    """

    def __init__(self, folder: pathlib.Path, resumed_at: int) -> None:
        self._folder = folder
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        now = time.time()
        # what a run that was killed has written beyond its checkpoint is not to be shown
        purge = Event(
            wall_time=now, step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START)
        )
        self._head = [Event(wall_time=now, file_version="brain.Event:2"), purge]

    def deliver(self, events: collections.deque) -> None:
        """Writes and removes all of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.append(b"".join(map(_framed, [*self._head, *events])))
        self._head = []
        events.clear()


def event_of(summary: Summary, step: int) -> Event:
    """A summary as what `TensorBoard` takes."""
    return Event(wall_time=time.time(), step=step, summary=summary)


def curve_of(name: str, value: float) -> Summary:
    """A point of a curve; NaN too, of which tensorboardX's own form of this warns at each step."""
    return Summary(value=[Summary.Value(tag=name, simple_value=value)])


class WandB:
    """Logs (step, values) to a run at Weights & Biases, which a resumed training run goes on with.

    No call of it is waited for longer than `SECONDS_FOR_WANDB`.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, folder: pathlib.Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"config key log.wandb is {project!r}, but wandb is not installed; run: "
                f"{install('wandb')}"
            ) from None
        self._wandb, self._folder, self._project = wandb, folder, project
        self._config, self._run = config, None
        self._call = BoundedCalls(SECONDS_FOR_WANDB)

    def deliver(self, events: collections.deque) -> None:
        """Logs them one after another and removes each that is logged."""
        self._call(lambda: self._log(events))

    def _log(self, events: collections.deque) -> None:
        if self._run is None:
            name = self._folder.name
            self._run = self._wandb.init(
                project=self._project, name=name, id=name, resume="allow", dir=str(self._folder),
                config=dict(self._config),
            )  # fmt: skip
        while events:
            step, values = events[0]
            self._run.log(values, step=step)
            events.popleft()

    def close(self) -> None:
        """Waits until all is sent, but not for ever: then it says where the rest lies."""
        if self._call.hanging:  # a call that was waited for and told of
            interrupts.do_not_wait()
            return
        if self._run is None:
            return
        try:
            self._call(self._run.finish)
        except TimedOut:
            interrupts.do_not_wait()
            tell(
                f"the run at Weights & Biases did not end within {SECONDS_FOR_WANDB:g} s and is "
                f"not waited for; what was not sent lies in {str(self._folder / 'wandb')!r}, and "
                f"`wandb sync` sends it"
            )


def metrics_line(event: Mapping[str, Any]) -> bytes:
    """An event as a line of metrics.jsonl."""
    return json.dumps(event).encode() + b"\n"


def tell(line: str) -> None:
    """One line on stderr, which may be as full as the disk."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _line_of(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _framed(event: Event) -> bytes:
    """An event as TensorBoard's files have it: length, data, and a checksum of each."""
    data = event.SerializeToString()
    size = struct.pack("<Q", len(data))
    return (
        size
        + struct.pack("<I", masked_crc32c(size))
        + data
        + struct.pack("<I", masked_crc32c(data))
    )
