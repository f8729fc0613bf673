"""What a run tells while it goes on: hooks for metrics.jsonl, TensorBoard, figures, and for you.

    class Live(Callback):
        def after_step(self, step, metrics):
            print(step, metrics["loss"])

    train("configs/quickstart.py", "runs/live", callbacks=[Live()])

The run's own writers are callbacks too (`writers.py`). They are told first, so that what they write
is on disk when a callback of yours hears of it, and they fail by themselves: a full disk ends no
run. Whatever a callback of yours raises ends the run and reaches the caller of `train`, as if it
had been raised there. What was saved before is kept: the same call goes on from the newest
checkpoint.

With several processes every one of them calls its callbacks, with the same numbers;
`xlstm_jax.parallel.is_first_process()` tells them apart. Time that a callback takes is training
time: the device idles once it has nothing queued, and `train.watchdog_seconds` counts it.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_jax.config import Config
from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """What callbacks may want to know of a run before its first step.

    Attributes:
        config: as it is used: also what `train` has decided itself (`model.remat`).
        folder: where its files lie; `folder.root` is the path.
        task: what is learned.
        start: steps that are behind it, 0 of a new run. Hooks are called for later ones alone.
    """

    config: Config
    folder: RunFolder
    task: Task
    start: int

    def shows(self, step: int) -> bool:
        """Whether a step is one of those that are shown and recorded: the first, the last, and
        every `log.every`-th.
        """
        return step in (1, self.config.train.steps) or step % self.config.log.every == 0


class Callback:
    """The hooks of a run, in the order in which they are called; each of these does nothing.

    Derive from it and override what you need.
    """

    def before_training(self, run: Run) -> None:
        """The parameters are ready; next comes step `run.start + 1`, if there is one."""

    def after_step(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """A step's numbers have been read, which is while the next step is being computed.

        Args:
            metrics: of every step loss (nats; of the batch, before the update), tokens (that
                count), grad_norm (before clipping), learning_rate, skipped (steps without an
                update so far), skipped_in_a_row, update_norm and the mixers' largest gates.
                Of a step that `Run.shows` also tokens_per_second, tokens_per_second_per_device,
                mfu (each None where nothing was measured), and seconds of wall time by what they
                were spent on. Of a step whose update was not applied first_sample and last_sample
                instead.
        """

    def after_evaluation(self, step: int, summaries: Mapping[str, Mapping[str, float]]) -> None:
        """All held-out sets were evaluated with the parameters after `step`.

        Args:
            summaries: the task's numbers by held-out set; "validation" is always there, further
                ones are "validation/NAME".
        """

    def before_checkpoint(self, step: int, params: Any) -> None:
        """The state after `step` is about to be saved; all its events were told.

        Args:
            params: by block number, on the devices. The next step reuses their memory: copy what
                you keep (`jax.device_get`).
        """

    def after_sample(self, step: int, text: str) -> None:
        """The trained model wrote a text of `eval.sample_tokens` tokens."""

    def after_training(self, summary: Mapping[str, float]) -> None:
        """All steps are done and saved; `summary` is what `train` returns."""

    def close(self) -> None:
        """The run ends, well or not; the last hook that is called, if `before_training` was."""


class Callbacks(Callback):
    """Tells several, one after another; what one of them raises is raised.

    As a context it closes those that were told of the run, the last first, whatever has happened.
    """

    def __init__(self, members: Sequence[Callback]) -> None:
        self._members, self._closing = tuple(members), contextlib.ExitStack()

    def __enter__(self) -> "Callbacks":
        return self

    def __exit__(self, *exception) -> bool | None:
        return self._closing.__exit__(*exception)

    def before_training(self, run: Run) -> None:
        for member in self._members:
            self._closing.callback(member.close)
            member.before_training(run)

    def after_step(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        for member in self._members:
            member.after_step(step, metrics)

    def after_evaluation(self, step: int, summaries: Mapping[str, Mapping[str, float]]) -> None:
        for member in self._members:
            member.after_evaluation(step, summaries)

    def before_checkpoint(self, step: int, params: Any) -> None:
        for member in self._members:
            member.before_checkpoint(step, params)

    def after_sample(self, step: int, text: str) -> None:
        for member in self._members:
            member.after_sample(step, text)

    def after_training(self, summary: Mapping[str, float]) -> None:
        for member in self._members:
            member.after_training(summary)


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises `UserError` where something else than callbacks is given."""
    given = "callbacks" if isinstance(callbacks, list | tuple) else None
    for number, member in enumerate(callbacks if given else [callbacks]):
        if given and isinstance(member, Callback):
            continue
        what = f"{given}[{number}]" if given else "callbacks"
        raise UserError(
            f"{what} is {member!r}; give a list of objects, each of a class that derives from "
            "xlstm_jax.training.Callback"
        )
