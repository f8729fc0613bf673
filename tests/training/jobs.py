"""Training runs as processes of their own, one or several, for tests that end them by force."""

import os
import pathlib
import socket
import subprocess
import sys

import jax

from tests.training.conftest import ROOT
from xlstm_jax.training.metrics import read_records


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with that many CPU devices and this process' compilation cache."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }


def start(
    command: list[str],
    processes: int = 1,
    devices: int = 1,
    own: dict[int, list[str]] | None = None,
) -> list[subprocess.Popen]:
    """train.py with these arguments, as that many processes that find each other; `devices` for
    each. `own` has further arguments of single processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for number in range(processes):
        place = {}
        if processes > 1:
            place = {
                "JAX_COORDINATOR_ADDRESS": coordinator,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *(own or {}).get(number, [])],
                cwd=ROOT,
                env=environment(devices) | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """Exit status and output of each process."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [
        (process.returncode, output) for process, output in zip(processes, outputs, strict=True)
    ]


def train_losses(workdir: pathlib.Path) -> dict[int, float]:
    """The loss of every step that is on record."""
    return {
        record["step"]: record["loss"]
        for record in read_records(workdir / "metrics.jsonl")
        if record["split"] == "train"
    }
