"""One folder is trained in by one job at a time: two would write the same checkpoints and log."""

import errno
import fcntl
import signal
import time

import pytest

import train as train_command
from tests.training.jobs import finish, start
from xlstm_jax.interrupts import EXIT_PREEMPTED
from xlstm_jax.runs.folder import find_run, to_ourselves
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records


def test_a_run_that_is_being_trained_is_refused_and_goes_on_afterwards(
    arguments, tmp_path, capsys, no_op_step
):
    with to_ourselves(find_run(tmp_path / "run")):
        assert train_command.main(arguments(tmp_path / "run")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: another process is training the run in '{tmp_path / 'run'}'; wait for it, end "
        "it, or give another --workdir"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert train_command.main(arguments(tmp_path / "run")) == 0


def test_a_file_system_without_locks_stops_nobody(tiny, tmp_path, monkeypatch, no_op_step):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    loop.train(tiny({"train.steps": 2}), tmp_path)


@pytest.mark.slow
def test_of_two_equal_commands_one_trains_and_the_other_says_so(arguments, tmp_path):
    command = arguments(tmp_path, "--config.train.steps=1000000", "--config.checkpoint.every=1")
    both = [*start(command), *start(command)]
    try:
        until = time.monotonic() + 120
        while all(process.poll() is None for process in both) and time.monotonic() < until:
            time.sleep(0.1)
        [refused] = [process for process in both if process.poll() is not None]
        [trains] = [process for process in both if process is not refused]
        while len(read_records(tmp_path / "metrics.jsonl")) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        trains.send_signal(signal.SIGTERM)
        [(status, said)], [(trained, _)] = finish([refused]), finish([trains])
    finally:
        for process in both:
            process.kill()
    assert (status, trained) == (2, EXIT_PREEMPTED)
    assert "another process is training the run" in said and "Traceback" not in said
    steps = [record["step"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and len(steps) >= 3
