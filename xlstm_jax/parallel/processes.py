"""The processes of a job on several hosts: how they find each other, and what each of them holds of
a batch.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xlstm_jax.errors import UserError

# Variables that launchers set for each process, and how many processes they speak of.
COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def start_processes(heartbeat_seconds: int, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of the job, if the environment says that there are some; before any
    device is used.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0) are
    enough anywhere. Under srun and mpirun, on GKE and TPU pods jax finds the rest by itself; where
    nothing in the environment tells the number, JAX_NUM_PROCESSES=auto asks for that. Within
    `heartbeat_seconds` of a process' death the runtime has ended all others. It gets three quarters
    of them as its own limit, which begins at the dead process' last heartbeat; telling the others
    and ending them takes it the rest.

    Raises:
        UserError: the variables contradict each other or the other processes can't be reached.
    """
    if jax.distributed.is_initialized() or not several_processes(environment):
        return
    given = environment.get("JAX_PROCESS_ID")
    try:
        explicit = (
            {}
            if given is None
            else {"num_processes": int(environment["JAX_NUM_PROCESSES"]), "process_id": int(given)}
        )
        jax.distributed.initialize(
            heartbeat_timeout_seconds=max(1, 3 * heartbeat_seconds // 4), **explicit
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the job's processes can't find each other: {type(error).__name__}: {error}. Set "
            f"JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process"
        ) from error


def several_processes(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several."""
    counts = [environment[name] for name in COUNTS if name in environment]
    tpu_workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return (
        "auto" in counts
        or any(count.isdigit() and int(count) > 1 for count in counts)
        or len(tpu_workers) > 1
    )


def is_first_process() -> bool:
    """True in the one process that writes what there is once: config.json, metrics, figures, lines
    on the terminal.
    """
    return jax.process_index() == 0


def own_part(
    sharding: jax.sharding.Sharding, batch_size: int, context_length: int
) -> tuple[int, int]:
    """Which part of a batch's rows this process has to read, and of how many equal parts: (0, 1) is
    all of them.
    """
    rows = [
        index[0].indices(batch_size)[:2]
        for index in sharding.addressable_devices_indices_map((batch_size, context_length)).values()
    ]
    start, stop = min(first for first, _ in rows), max(last for _, last in rows)
    size = stop - start
    if batch_size % size or start % size:
        return 0, 1
    return start // size, batch_size // size


def put_batch(batch: Any, sharding: jax.sharding.Sharding, part: int = 0, parts: int = 1) -> Any:
    """The arrays of a batch on all devices of the sharding; each process gives its own devices
    their part of the whole batch.

    `batch` has the rows of the part that `own_part` names.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def put(rows: np.ndarray) -> jax.Array:
        size, first = parts * len(rows), part * len(rows)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return rows[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, piece)

    return jax.tree.map(lambda x: put(np.asarray(x)), batch)
