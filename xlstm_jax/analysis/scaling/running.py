"""Carries out a plan on this machine, one run after another. What is done stays done."""

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from xlstm_jax import interrupts
from xlstm_jax.analysis.scaling.plan import PlannedRun, arguments, read_plan, run_folder
from xlstm_jax.analysis.scaling.reading import final_loss
from xlstm_jax.interrupts import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    NAMES,
    STATUS,
    Preempted,
    Rule,
    rule,
)
from xlstm_jax.progress import counted, duration
from xlstm_jax.runs.folder import RunFolder

TRAIN = "xlstm_jax.training.command"  # of a higher floor: a program that is started, no import
Train = Callable[[Sequence[str]], int]
SECONDS_TO_SAVE = 330.0  # more than train.grace_seconds, after which train.py ends by itself


def train(call: Sequence[str]) -> int:
    """Calls train.py's command in a process of its own, which has the terminal; returns its exit
    status.

    Ctrl-C reaches that process too, and SIGTERM is handed on to it. It saves the step that it is
    in, which is waited for.
    """

    def patient(number: int) -> Rule:
        return Rule(SECONDS_TO_SAVE, STATUS[number], lambda: f"{NAMES[number]}; train.py hangs")

    with (
        rule(signal.SIGINT, patient(signal.SIGINT)),
        rule(signal.SIGTERM, patient(signal.SIGTERM)),
        subprocess.Popen([sys.executable, "-m", TRAIN, *call]) as process,
    ):
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            return EXIT_INTERRUPTED
        finally:
            interrupts.dealt_with()  # what ends now is this run; `Preempted` says so
            signal.signal(signal.SIGTERM, before)


def run_plan(folder: pathlib.Path, most: int | None = None, train: Train = train) -> list[str]:
    """Trains what is not done yet, in the plan's order; returns the names of runs that failed.

    Args:
        most: runs of this call; None: all.
        train: called with the arguments of train.py; returns its exit status.

    Raises:
        UserError: there is no plan.
        Preempted: a run was asked to end, and saved.
    """
    planned = read_plan(folder)
    waiting = [run for run in planned if _loss(folder, run) is None]
    print(f"{counted(len(planned), 'run')}, {len(planned) - len(waiting)} of them done", flush=True)
    waiting = waiting[:most]
    failed: list[str] = []
    flops, started = 0.0, time.monotonic()
    for number, run in enumerate(waiting, 1):
        label = f"run {number} of {len(waiting)}: {run.name}, {run.flops:.3g} FLOPs"
        print(label, flush=True)
        status = train(arguments(folder, run))
        if status in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            raise Preempted(f"{run.name} was interrupted; the same command goes on", status)
        flops += run.flops
        seconds = time.monotonic() - started
        left = sum(later.flops for later in waiting[number:]) * seconds / flops
        loss = _loss(folder, run)
        if loss is None:
            failed.append(run.name)
        said = f"exit status {status}, no loss" if loss is None else f"held-out loss {loss:.4f}"
        print(
            f"{run.name}: {said}; {number} of {len(waiting)} done, {flops / seconds:.2g} FLOP/s, "
            f"about {duration(left)} left",
            flush=True,
        )
    return failed


def _loss(folder: pathlib.Path, run: PlannedRun) -> float | None:
    return final_loss(RunFolder(run_folder(folder, run)), run.steps)
