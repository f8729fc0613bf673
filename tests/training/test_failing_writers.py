"""Whatever a run writes may fail at any time: it is said once, tried again, training goes on."""

import collections
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import train as train_command
from tests.training.board import board_events
from tests.training.conftest import ROOT
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training import figure, loop, metrics, outlets, writers
from xlstm_jax.training.metrics import MetricsWriter, read_records
from xlstm_jax.training.outlets import AppendedFile, Outlet, replace_file


@contextlib.contextmanager
def limited_files() -> Iterator[Callable[[int | None], None]]:
    """Gives a function that sets how large files may grow; writes beyond it fail, as on a full
    disk. Not a fixture: pytest writes its report of a test before fixtures are taken down.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    caching = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # it would keep half an entry
    compilation_cache.reset_cache()  # else jax does not look at the setting again
    try:
        yield limit
    finally:
        jax.config.update("jax_enable_compilation_cache", caching)
        compilation_cache.reset_cache()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def during_steps(monkeypatch, act):
    """Calls `act` with the number of each step before it is computed."""
    make_train_step = loop.make_train_step

    def make(*args):
        run, numbers = make_train_step(*args), itertools.count(1)

        def step(state, batch):
            act(next(numbers))
            return run(state, batch)

        return step

    monkeypatch.setattr(loop, "make_train_step", make)


def board_losses(folder) -> list[int]:
    return [
        event.step
        for event in board_events(folder)
        for value in event.summary.value
        if value.tag == "train/loss"
    ]


@pytest.mark.slow
def test_a_disk_that_is_full_for_some_steps_costs_nothing_that_is_on_record(
    arguments, tmp_path, monkeypatch, capsys, no_op_step
):
    more = ["--config.train.steps=8", "--config.log.tensorboard=true", "--config.eval.every=4"]
    with limited_files() as limit:
        during_steps(monkeypatch, lambda step: limit(10 if 3 <= step < 6 else None))
        assert train_command.main(arguments(tmp_path, *more)) == 0
    told = capsys.readouterr().err.splitlines()
    for name in ("metrics.jsonl", "TensorBoard's file", "loss.png"):
        failed = f"{name} can't be written (OSError: File too large); training goes on"
        assert [line for line in told if line.startswith(name)] == [
            failed,
            f"{name} is written again",
        ]
    events = read_records(tmp_path / "metrics.jsonl")
    assert [event["step"] for event in events if event["split"] == "train"] == list(range(1, 9))
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == len(events)
    assert board_losses(tmp_path / "tensorboard") == list(range(1, 9))
    assert {path.name for path in tmp_path.iterdir()} >= {"loss.png", "checkpoints"}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_what_is_full_until_the_end_keeps_what_was_written_and_says_that_the_end_is_not_saved(
    arguments, tmp_path, monkeypatch, capsys, no_op_step
):
    more = ["--config.checkpoint.every=3"]

    def fill(step: int) -> None:
        if step == 5:
            while not (tmp_path / "checkpoints" / "3").is_dir():  # it is being written
                time.sleep(0.01)
            limit(10)

    with limited_files() as limit, monkeypatch.context() as patch:
        during_steps(patch, fill)
        assert train_command.main(arguments(tmp_path, *more)) == 2
    told = capsys.readouterr().err
    assert "step 6: the disk is full, so this step is NOT saved" in told
    assert "all 6 steps are done, but the last one could not be saved" in told
    assert "it goes on from step 3" in told
    assert [event["step"] for event in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    # Threads of the failed save are still at work in this process; the next start has none.
    while remains := list((tmp_path / "checkpoints").glob("6.*")):
        shutil.rmtree(remains[0], ignore_errors=True)
        time.sleep(0.05)
    assert train_command.main(arguments(tmp_path, *more)) == 0
    events = read_records(tmp_path / "metrics.jsonl")
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6, 6]


WRITERS = {
    "metrics.jsonl": (metrics._MetricsFile, "deliver"),
    "TensorBoard's file": (outlets.TensorBoard, "deliver"),
    "the run at Weights & Biases": (outlets.WandB, "deliver"),
    "loss.png": (figure, "draw_loss"),
    "samples.txt": (writers, "replace_file"),
    "data.json": (loop, "write_data_record"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_always_raises_is_named_once_and_the_run_ends_well(
    name, arguments, tmp_path, monkeypatch, capsys, no_op_step
):
    def broken(*_, **__):
        raise RuntimeError("something that nobody expects")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=FakeRun))
    monkeypatch.setattr(*WRITERS[name], broken)
    more = ["--config.log.tensorboard=true", "--config.log.wandb=cells", "--config.eval.every=3"]
    assert train_command.main(arguments(tmp_path, *more, "--config.eval.sample_tokens=5")) == 0
    told = capsys.readouterr().err.splitlines()
    said = (
        f"{name} can't be written (RuntimeError: something that nobody expects); training goes on"
    )
    assert told[0] == said and not any("can't be written" in line for line in told[1:])
    assert (tmp_path / "checkpoints" / "6").is_dir()


class FakeRun:
    """wandb.init and the run that it returns."""

    logged: list = []

    def __init__(self, **_):
        pass

    def log(self, values, step):
        self.logged.append(step)

    def finish(self):
        pass


SAYING = """
import sys
from xlstm_jax.training import console
console.say("first")
console.say("second")
console.end_of_output()
sys.exit(0)
"""


def test_a_log_on_a_full_disk_ends_nothing():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SAYING], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        0,
        "stdout can't be written (OSError: No space left on device); training goes on\n",
    )


def test_a_reader_that_is_gone_ends_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", SAYING], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (
        0,
        "stdout can't be written (BrokenPipeError: Broken pipe); training goes on\n",
    )


def test_an_outlet_keeps_the_order_and_asks_a_slow_failure_rarely(capsys):
    now, taken, away = [0.0], [], [True]

    def deliver(events: collections.deque) -> None:
        if away[0]:
            now[0] += 3.0  # a time-out
            raise ConnectionError("no route")
        taken.extend(events)
        events.clear()

    outlet = Outlet("the service", deliver, clock=lambda: now[0])
    for event in range(50):
        now[0] += 1.0
        outlet.put(event)
    assert now[0] == 50 + 3  # asked once: it cost three seconds, so not again for a minute
    away[0] = False
    now[0] += 60
    outlet.put(50)
    outlet.close()
    assert taken == list(range(51))
    assert capsys.readouterr().err.splitlines() == [
        "the service can't be written (ConnectionError: no route); training goes on",
        "the service is written again",
    ]


def test_a_file_has_whole_records_only(tmp_path):
    path, file = tmp_path / "records", AppendedFile(tmp_path / "records")
    file.append(b"one\n")
    with limited_files() as limit, pytest.raises(OSError):
        limit(6)
        file.append(b"three\n")
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"one\nthr")  # where even the removal has failed
    file.append(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_file_that_can_not_be_replaced_stays_as_it_was(tmp_path):
    path = tmp_path / "loss.png"
    replace_file(path, b"old")
    with limited_files() as limit, pytest.raises(OSError):
        limit(4)
        replace_file(path, b"much longer")
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == [
        "loss.png"
    ]


def test_a_full_disk_at_the_start_loses_none_of_the_old_events(tmp_path):
    folder = find_run(tmp_path)
    old = [{"step": step, "split": "train", "loss": 1.0} for step in range(1, 9)]
    folder.metrics.write_text("".join(json.dumps(event) + "\n" for event in old))
    with limited_files() as limit:
        limit(100)
        writer = MetricsWriter(folder, 6, tensorboard=False)
        writer.write(7, "train", {"loss": 2.0})
        assert read_records(folder.metrics) == old
        limit(None)
        with writer:
            writer.write(8, "train", {"loss": 2.0})
    assert [event["loss"] for event in read_records(folder.metrics)] == [1.0] * 6 + [2.0] * 2
