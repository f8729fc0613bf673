"""A run that is killed without warning goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.training.conftest import ROOT
from xlstm_jax.training.metrics import read_records


def train_losses(workdir):
    return {record["step"]: record["loss"] for record in read_records(workdir / "metrics.jsonl") if record["split"] == "train"}


@pytest.mark.slow
def test_after_sigkill_the_losses_are_the_same_to_the_last_bit(arguments, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    more = ["--config.train.steps=400", "--config.checkpoint.every=20", "--config.eval.every=1000"]

    def command(workdir):
        return [sys.executable, *arguments(workdir, *more)]

    subprocess.run(command(tmp_path / "undisturbed"), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)

    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(train_losses(killed)) < 50:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    seen = train_losses(killed)
    assert 50 <= len(seen) < 400

    done = subprocess.run(command(killed), cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "resumed from step " in done.stdout
    expected = train_losses(tmp_path / "undisturbed")
    assert len(expected) == 400 and train_losses(killed) == expected
    assert all(expected[step] == loss for step, loss in seen.items())
