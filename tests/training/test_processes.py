"""Several processes train as one does; one that is asked to end takes all along, one that dies
holds nobody up for long.
"""

import re
import signal
import time

import numpy as np
import pytest

from tests.training.jobs import finish, start, train_losses
from xlstm_jax.interrupts import EXIT_PREEMPTED

MESH = [
    "--config.data.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.mesh.data=-1",
    "--config.mesh.fsdp=2",
]


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
def test_two_processes_of_four_devices_are_one_of_eight(arguments, tmp_path):
    """To 1e-6, and a checkpoint of the two goes on in the one."""
    more = [*MESH, "--config.train.steps=8", "--config.checkpoint.every=4"]
    [(status, output)] = finish(start(arguments(tmp_path / "one", *more), devices=8))
    assert status == 0, output
    for status, output in finish(start(arguments(tmp_path / "two", *more), processes=2, devices=4)):
        assert status == 0, output
    one, two = train_losses(tmp_path / "one"), train_losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 9))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-6)

    (tmp_path / "two/checkpoints/8").rename(tmp_path / "later")
    [(status, output)] = finish(start(arguments(tmp_path / "two", *more), devices=8))
    assert status == 0 and "resumed from step 4" in output, output
    np.testing.assert_allclose(
        list(train_losses(tmp_path / "two").values()), list(one.values()), rtol=1e-6
    )


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_step(arguments, tmp_path):
    more = [*MESH, "--config.train.steps=100000"]
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
    heartbeat = 20
    more = [
        *MESH,
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
def test_processes_with_different_configurations_or_folders_end_with_a_sentence_each(
    arguments, tmp_path
):
    """Status 2 in both, so that no scheduler starts them again."""
    cases = {
        "--config.optimizer.learning_rate=0.02": (
            "different configurations: optimizer.learning_rate is 0.01 in process 0 and 0.02 in "
            "process 1. Start all of them with the same command"
        ),
        f"--workdir={tmp_path}/other": "do not share one --workdir: process 0 writes to",
    }
    for own, message in cases.items():
        command = arguments(tmp_path / "run", *MESH)
        for status, output in finish(start(command, processes=2, own={1: [own]})):
            assert status == 2 and message in output and "Traceback" not in output, output
        assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_mistake_that_one_process_alone_meets_ends_all(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "other").write_text("no folder")
    command = arguments(tmp_path / "run", *MESH)
    processes = start(command, processes=2, own={1: [f"--workdir={tmp_path}/other"]})
    for status, output in finish(processes):
        assert status == 2 and "is a file; give a folder" in output, output


@pytest.mark.slow
def test_sigterm_ends_processes_that_no_longer_reach_a_step(arguments, tmp_path):
    """One is stopped, so that the other waits in a collective; `train.grace_seconds` end it."""
    more = [*MESH, "--config.train.steps=100000", "--config.train.grace_seconds=3"]
    processes = start(arguments(tmp_path, *more), processes=2, devices=2)
    try:
        wait_for_steps(tmp_path, processes, 5)
        processes[1].send_signal(signal.SIGSTOP)
        time.sleep(1)
        processes[0].send_signal(signal.SIGTERM)
        output = processes[0].communicate(timeout=60)[0]
    finally:
        kill(processes)
    assert processes[0].returncode == EXIT_PREEMPTED, output
    assert "SIGTERM; no step is saved yet, the same command begins anew" in output
