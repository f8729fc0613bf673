"""SIGTERM and steps that hang, in one process."""

import signal
import subprocess
import sys

import pytest

import train as train_command
from tests.training.conftest import ROOT
from tests.training.jobs import finish, start, train_losses
from xlstm_jax.interrupts import EXIT_PREEMPTED
from xlstm_jax.training import loop


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_run_goes_on_from_there(
    arguments, tmp_path, monkeypatch, capsys
):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert train_command.main(arguments(undisturbed)) == 0
    make_train_step = loop.make_train_step

    def make_and_be_asked_to_end(*args):
        step = make_train_step(*args)

        def run(state, batch):
            if int(state.step) == 2:
                signal.raise_signal(signal.SIGTERM)
            return step(state, batch)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_train_step", make_and_be_asked_to_end)
        assert train_command.main(arguments(stopped)) == EXIT_PREEMPTED
    assert (
        "SIGTERM: step 3 is saved, the same command goes on from there" in capsys.readouterr().err
    )
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["3"]
    assert train_command.main(arguments(stopped)) == 0
    assert train_losses(stopped) == train_losses(undisturbed)


def test_after_training_sigterm_does_what_it_did_before(tiny, tmp_path, no_op_step):
    before = signal.getsignal(signal.SIGTERM)
    loop.train(tiny(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


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
