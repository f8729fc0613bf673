"""Several processes train as one does; one that is asked to end takes all along, one that dies
holds nobody up for long.
"""

import re
import signal
import time

import numpy as np
import pytest

import train as train_command
from tests.training.jobs import finish, start, train_losses
from xlstm_jax.interrupts import EXIT_PREEMPTED

MESH = [
    "--config.data.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.mesh.data=-1",
    "--config.mesh.fsdp=2",
]
# where the model does not matter: one that compiles fast
SMALL = [*MESH, "--config.model.blocks=mlp,slstm", "--config.model.mlstm.num_heads=4"]


def wait_for_steps(workdir, processes, steps):
    deadline = time.monotonic() + 300
    while len(train_losses(workdir)) < steps:
        assert time.monotonic() < deadline and all(
            process.poll() is None for process in processes
        ), "ended too early"
        time.sleep(0.02)


def kill(processes):
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(arguments, tmp_path, capsys):
    """To 1e-6, and a checkpoint of the two goes on in the one, which is this process."""
    more = [*MESH, "--config.train.steps=8", "--config.checkpoint.every=4"]
    assert train_command.main(arguments(tmp_path / "one", *more)) == 0
    for status, output in finish(start(arguments(tmp_path / "two", *more), processes=2, devices=4)):
        assert status == 0, output
    one, two = train_losses(tmp_path / "one"), train_losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 9))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-6)

    (tmp_path / "two/checkpoints/8").rename(tmp_path / "later")
    assert train_command.main(arguments(tmp_path / "two", *more)) == 0
    assert "resumed from step 4" in capsys.readouterr().out
    np.testing.assert_allclose(
        list(train_losses(tmp_path / "two").values()), list(one.values()), rtol=1e-6
    )


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_step(arguments, tmp_path):
    more = [*SMALL, "--config.train.steps=100000"]
    processes = start(arguments(tmp_path, *more), processes=2, devices=2)
    try:
        wait_for_steps(tmp_path, processes, 5)
        processes[1].send_signal(signal.SIGTERM)
        results = finish(processes, timeout=120)
    finally:
        kill(processes)
    assert [status for status, _ in results] == [EXIT_PREEMPTED] * 2, results
    saved = [re.search(r"SIGTERM: step (\d+) is saved", output)[1] for _, output in results]
    assert saved[0] == saved[1] and (tmp_path / "checkpoints" / saved[0]).is_dir()


@pytest.mark.slow
def test_when_one_process_dies_the_other_ends_within_the_heartbeat_and_one_goes_on(
    arguments, tmp_path
):
    heartbeat = 10
    more = [
        *SMALL,
        "--config.train.steps=40000",
        "--config.checkpoint.every=3",
        f"--config.train.heartbeat_seconds={heartbeat}",
    ]
    processes = start(arguments(tmp_path, *more), processes=2, devices=2)
    try:
        wait_for_steps(tmp_path, processes, 10)
        processes[1].kill()
        killed_at = time.monotonic()
        status = processes[0].wait(timeout=120)
        assert time.monotonic() - killed_at < heartbeat
        assert status not in (0, EXIT_PREEMPTED)
    finally:
        kill(processes)
    before = max(train_losses(tmp_path))
    alone = start(arguments(tmp_path, *more), devices=4)
    try:
        wait_for_steps(tmp_path, alone, before + 3)
        alone[0].send_signal(signal.SIGTERM)
        [(status, output)] = finish(alone)
    finally:
        kill(alone)
    assert status == EXIT_PREEMPTED and "resumed from step" in output, output


@pytest.mark.slow
def test_processes_with_different_configurations_end_with_a_sentence_each(arguments, tmp_path):
    """Status 2 in both, so that no scheduler starts them again."""
    own = {1: ["--config.optimizer.learning_rate=0.02"]}
    for status, output in finish(start(arguments(tmp_path, *MESH), processes=2, own=own)):
        assert status == 2 and "Traceback" not in output, output
        assert (
            "different configurations: optimizer.learning_rate is 0.01 in process 0 and 0.02 in "
            "process 1. Start all of them with the same command"
        ) in output
    assert not list(tmp_path.iterdir())


# Prints one line for each check: "fine", or the message.
CHECKS = """
import pathlib, sys
import jax
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import check_same_everywhere, check_shared_folder, everywhere
from xlstm_jax.parallel import start_processes
start_processes(60)
shared, number = pathlib.Path(sys.argv[1]), jax.process_index()
def fail_in_second():
    if number == 1:
        raise UserError("a file is missing")
for check in (
    lambda: check_same_everywhere({"model.dim": 16, "data.path": "a"}, "configurations"),
    lambda: check_same_everywhere({"model.dim": 16 + number, "data.path": "a" * number}, "data"),
    lambda: check_shared_folder(shared / "run", "--workdir", seconds=5),
    lambda: check_shared_folder(shared / f"run {number}", "--workdir", seconds=0.5),
    lambda: check_shared_folder(pathlib.Path("/proc/nope"), "--workdir"),
    lambda: everywhere(fail_in_second),
):
    try:
        check()
        print("fine", flush=True)
    except UserError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_processes_agree_on_what_they_were_given_and_on_one_folder(tmp_path):
    for number, (status, output) in enumerate(
        finish(start(["-c", CHECKS, str(tmp_path)], processes=2))
    ):
        assert status == 0, output
        same, differs, shared, apart, unwritable, mistake = output.splitlines()[-6:]
        assert same == "fine"
        assert "different data: data.path is '' in process 0 and 'a' in process 1" in differs
        assert "model.dim is 16 in process 0 and 17 in process 1" in differs
        assert shared == "fine"
        assert "do not share one --workdir: process 0 writes to" in apart and "run 1'" in apart
        assert "--workdir '/proc/nope' can't be written to" in unwritable
        assert mistake == (
            "a file is missing" if number else "process 1 of the job: a file is missing"
        )
    assert not list((tmp_path / "run").iterdir())


# Both processes hang; the signal goes to one of them.
HANGING = """
import signal, sys, time
import jax
from xlstm_jax import command_line
from xlstm_jax.interrupts import Preempted
from xlstm_jax.parallel import start_processes
from xlstm_jax.training.preemption import Preemption
def command():
    start_processes(60)
    with Preemption(1.0) as preemption:
        preemption.saved(7)
        preemption.reached(8)
        if jax.process_index() == 1:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(120)
if __name__ == "__main__":
    sys.exit(command_line.run(command))
"""


@pytest.mark.slow
def test_sigterm_to_one_ends_all_within_a_bound_though_they_hang(tmp_path):
    for status, output in finish(start(["-c", HANGING], processes=2), timeout=100):
        assert "SIGTERM; the same command goes on from step 7" in output, output
        assert status == EXIT_PREEMPTED
