"""SIGTERM and steps that hang, in one process."""

import signal
import subprocess
import sys

import pytest

import train as train_command
from tests.training.conftest import ROOT
from tests.training.jobs import finish, start, train_losses
from xlstm_jax.interrupts import EXIT_INTERRUPTED, EXIT_PREEMPTED
from xlstm_jax.training import loop


def signal_at(monkeypatch, step, number):
    """The process gets a signal while this step is being computed, as often as the loop is made."""
    make_train_step = loop.make_train_step

    def make(*args):
        run = make_train_step(*args)

        def run_and_be_asked_to_end(state, batch):
            if int(state.step) + 1 == step:
                signal.raise_signal(number)
            return run(state, batch)

        return run_and_be_asked_to_end

    monkeypatch.setattr(loop, "make_train_step", make)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, EXIT_PREEMPTED, "SIGTERM: step 3 is saved, the same command goes on"),
        (signal.SIGINT, EXIT_INTERRUPTED, "interrupted: step 3 is saved, the same command goes on"),
    ],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(
    arguments, tmp_path, monkeypatch, capfd, number, status, said
):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert train_command.main(arguments(undisturbed)) == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 3, number)
        assert train_command.main(arguments(stopped)) == status
    assert said in capfd.readouterr().err
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["3"]
    assert train_command.main(arguments(stopped)) == 0
    assert train_losses(stopped) == train_losses(undisturbed)


def test_while_there_is_nothing_to_save_ctrl_c_ends_at_once_and_says_what_is_true(
    arguments, tmp_path, monkeypatch, capsys, no_op_step
):
    signal_at(monkeypatch, 1, signal.SIGINT)
    assert train_command.main(arguments(tmp_path)) == EXIT_INTERRUPTED
    [line] = capsys.readouterr().err.splitlines()
    assert line == "interrupted; no step is saved yet, the same command begins anew"
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_second_ctrl_c_ends_at_once_and_names_the_newest_checkpoint(
    arguments, tmp_path, monkeypatch, capfd, no_op_step
):
    for _ in range(2):
        signal_at(monkeypatch, 5, signal.SIGINT)
    more = ["--config.checkpoint.every=3", "--config.eval.every=100"]
    assert train_command.main(arguments(tmp_path, *more)) == EXIT_INTERRUPTED
    assert capfd.readouterr().err.splitlines() == [
        "interrupted: this step is finished and saved; Ctrl-C again ends at once",
        "interrupted; the same command goes on from step 3",
    ]


HANGING = """
import ctypes, sys
from xlstm_jax import command_line
from xlstm_jax.training.preemption import Preemption
def command():
    with Preemption(1.0) as preemption:
        preemption.saved(7)
        preemption.reached(8)
        print("ready", flush=True)
        c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        c.pthread_mutex_lock(mutex)
        c.pthread_mutex_lock(mutex)  # for ever, like a collective that a dead host has left
if __name__ == "__main__":
    sys.exit(command_line.run(command))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, EXIT_PREEMPTED), (signal.SIGINT, EXIT_INTERRUPTED)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_run_that_can_not_save_any_more_ends_all_the_same(number, status, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert errors.endswith("the same command goes on from step 7\n")


SLOW_TO_CLOSE = """
import sys, time
from xlstm_jax import command_line, interrupts
from xlstm_jax.training.preemption import Preemption
interrupts.SECONDS_TO_CLEAN_UP = 0.2
def command():
    try:
        with Preemption(60.0) as preemption:
            preemption.reached(7)
            print("ready", flush=True)
            while not preemption.reached(8):
                time.sleep(0.01)
            time.sleep(0.5)  # saves
            raise preemption.ended_at(8, saved=True)
    finally:
        time.sleep(0.5)  # closes what is open
if __name__ == "__main__":
    try:
        sys.exit(command_line.run(command))
    except interrupts.Preempted as saved:
        print(saved, file=sys.stderr)
        sys.exit(saved.status)
"""


@pytest.mark.slow
def test_what_is_saved_is_said_however_long_the_end_takes():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_CLOSE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    saved = "SIGTERM: step 8 is saved, the same command goes on from there\n"
    assert (process.returncode, errors) == (EXIT_PREEMPTED, saved)


def test_after_training_sigterm_does_what_it_did_before(tiny, tmp_path, no_op_step):
    before = signal.getsignal(signal.SIGTERM)
    loop.train(tiny(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "status"), [(False, 0), (True, 1)])
def test_a_step_that_hangs_shows_where_and_ends_the_process_if_asked(ends, status):
    program = f"""
import time
from xlstm_jax.training.watchdog import Watchdog

def hanging_collective():
    time.sleep(2.5)

with Watchdog(1, ends={ends}) as watchdog:
    watchdog.step()
    hanging_collective()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert "Timeout (0:00:01)" in done.stderr and "in hanging_collective" in done.stderr


@pytest.mark.slow
def test_no_step_is_no_hang():
    program = """
import time
from xlstm_jax.training.watchdog import Watchdog

with Watchdog(1, ends=True) as watchdog:
    watchdog.step()
    watchdog.pause()
    time.sleep(1.5)
time.sleep(1.5)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_profile_of_the_named_steps_is_written(arguments, tmp_path):
    """In a process of its own: jax's profiler ends one that has loaded libtpu without a TPU, as
    other tests here do.
    """
    [(status, output)] = finish(start(arguments(tmp_path, "--profile=2:3")))
    assert status == 0, output
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
