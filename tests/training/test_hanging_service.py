"""A service that never answers keeps no run from going on or ending, and no process from leaving;
it is said once.
"""

import subprocess
import sys
import threading
import types

import pytest

import train as train_command
from tests.training.conftest import ROOT
from xlstm_jax import interrupts
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training import outlets
from xlstm_jax.training.bounded_calls import BoundedCalls, TimedOut
from xlstm_jax.training.metrics import MetricsWriter, read_records


@pytest.fixture
def hang(monkeypatch):
    """A call that does not return before the test's end."""
    end = threading.Event()
    monkeypatch.setattr(interrupts, "_hanging", threading.Event())
    monkeypatch.setattr(outlets, "SECONDS_FOR_WANDB", 0.2)
    yield lambda *_, **__: end.wait()
    end.set()


def service(monkeypatch, **hanging) -> list:
    """Puts a stand-in in wandb's place of which some calls hang; returns what is logged."""
    logged = []
    run = {"log": lambda values, step: logged.append(step), "finish": lambda: None} | hanging
    init = hanging.get("init", lambda **_: types.SimpleNamespace(**run))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return logged


def test_a_run_is_done_when_its_service_does_not_finish(
    hang, arguments, tmp_path, monkeypatch, capsys, no_op_step
):
    logged = service(monkeypatch, finish=hang)
    assert train_command.main(arguments(tmp_path, "--config.log.wandb=cells")) == 0
    assert sorted(set(logged)) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "checkpoints" / "6").is_dir() and (tmp_path / "loss.png").exists()
    assert capsys.readouterr().err.splitlines() == [
        "the run at Weights & Biases did not end within 0.2 s and is not waited for; what was not "
        f"sent lies in {str(tmp_path / 'wandb')!r}, and `wandb sync` sends it"
    ]
    assert interrupts._hanging.is_set()


@pytest.mark.parametrize("call", ["init", "log"])
def test_events_are_not_waited_for_for_ever(call, hang, tmp_path, monkeypatch, capsys):
    service(monkeypatch, **{call: hang})
    with MetricsWriter(find_run(tmp_path), 0, tensorboard=False, wandb="cells") as writer:
        for step in range(1, 9):
            writer.write(step, "train", {"loss": 1.0})
    assert len(read_records(tmp_path / "metrics.jsonl")) == 8
    assert capsys.readouterr().err.splitlines() == [
        "the run at Weights & Biases can't be written (TimedOut: no answer within 0.2 s); training "
        "goes on",
        "the run at Weights & Biases: 8 entries could not be written and are lost",
    ]
    assert interrupts._hanging.is_set()


def test_what_answers_late_is_not_asked_twice():
    call, end, calls = BoundedCalls(0.05), threading.Event(), []

    def late():
        end.wait()
        calls.append("late")
        raise ConnectionError("gone")

    for _ in range(2):
        with pytest.raises(TimedOut, match="no answer within 0.05 s"):
            call(late)
    assert call.hanging
    end.set()
    with pytest.raises(ConnectionError, match="gone"):  # what the first one came to
        call(lambda: calls.append("early"))
    assert calls == ["late"] and not call.hanging
    call(lambda: calls.append("next"))
    assert calls == ["late", "next"]


LEAVING = """
import atexit, time
from xlstm_jax import interrupts
interrupts.SECONDS_TO_LEAVE = 0.3

@atexit.register
def wait():
    time.sleep({seconds})
    print("waited")

if {hanging}:
    interrupts.do_not_wait()
print("done")
interrupts.leave(75)
"""


@pytest.mark.parametrize(("hanging", "seconds"), [(True, 60), (False, 0.6)])
def test_a_librarys_own_end_is_waited_for_only_where_nothing_hangs(hanging, seconds):
    program = LEAVING.format(hanging=hanging, seconds=seconds)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    expected = "done\n" if hanging else "done\nwaited\n"
    assert (done.returncode, done.stdout, done.stderr) == (75, expected, "")
