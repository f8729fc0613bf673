"""The processes of a job on several hosts: how they find each other, and what each of them holds of
a batch.
"""

import json
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from xlstm_jax.errors import UserError

Result = TypeVar("Result")
SHOWN = 5  # differences in one message
SECONDS_TO_BE_SEEN = 10.0  # a new file, on another host's side of a network file system
# Variables that launchers set for each process, and how many processes they speak of.
COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def start_processes(heartbeat_seconds: int, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of the job, if the environment says that there are some; before any
    device is used.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0) are
    enough anywhere. Under srun and mpirun, on GKE and TPU pods jax finds the rest by itself; where
    nothing in the environment tells the number, JAX_NUM_PROCESSES=auto asks for that.

    Within `heartbeat_seconds` of a process' death all others are ended. jax's own time-out, which
    counts from the dead process' last heartbeat, is three quarters of that; the rest is what its
    runtime takes to tell the others and to shut them down.

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


def texts_of_all(text: str) -> list[str]:
    """The text that each process gives, in the order of the processes; all must call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data))).tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def everywhere(work: Callable[[], Result]) -> Result:
    """What `work` returns; where it finds a mistake of the user in one process, all processes end
    with that message instead of waiting for it.

    Raises:
        UserError: of this process, or else of the first that has one.
    """
    result, error = None, None
    try:
        result = work()
    except UserError as found:
        error = found
    messages = texts_of_all("" if error is None else str(error))
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message:
            raise UserError(f"process {number} of the job: {message}")
    return result


def check_same_everywhere(values: Mapping[str, Any], what: str) -> None:
    """Refuses a job whose processes were given different things; all of them raise the same.

    Args:
        values: name -> value, of things that JSON can hold.
        what: names their kind in the message, for example "configurations".

    Raises:
        UserError: the first processes that differ, with the names and both values.
    """
    first, *others = (json.loads(text) for text in texts_of_all(json.dumps(dict(values))))
    for number, other in enumerate(others, 1):
        differing = [
            f"{name} is {first.get(name)!r} in process 0 and {other.get(name)!r} in process "
            f"{number}"
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if differing:
            more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise UserError(
                f"the processes of this job have different {what}: "
                f"{'; '.join(differing[:SHOWN])}{more}. Start all of them with the same command"
            )


def check_shared_folder(
    folder: pathlib.Path, flag: str, seconds: float = SECONDS_TO_BE_SEEN
) -> None:
    """Refuses a folder that is not one and the same for all processes; makes it if it isn't there.

    The first process writes a small file of a new name, which the others look for. A path that is
    equal everywhere would prove nothing: it may lie on each host's own disk.

    Args:
        flag: names the folder in the message, for example "--workdir".
        seconds: that the file may take until another host sees it; network file systems are late.

    Raises:
        UserError: in all processes, naming those that don't see it.
    """
    if jax.process_count() == 1:
        return
    trace, problem = "", ""
    if is_first_process():
        trace = f".seen_by_all_{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / trace).touch()
        except OSError as error:
            problem = f"can't be written to: {error.strerror}"
    # this also tells the others when the file is there
    trace, problem = json.loads(texts_of_all(json.dumps([trace, problem]))[0])
    if problem:
        raise UserError(f"{flag} {str(folder)!r} {problem}; give another folder")
    until = time.monotonic() + seconds
    while not (seen := (folder / trace).exists()) and time.monotonic() < until:
        time.sleep(0.2)
    answers = [json.loads(text) for text in texts_of_all(json.dumps([seen, str(folder)]))]
    if is_first_process():
        (folder / trace).unlink(missing_ok=True)
    blind = [
        f"process {number}, whose folder is {path!r}"
        for number, (seen, path) in enumerate(answers)
        if not seen
    ]
    if blind:
        raise UserError(
            f"the processes of this job do not share one {flag}: process 0 writes to "
            f"{answers[0][1]!r}, which is not the same folder for {', '.join(blind[:SHOWN])}. Give "
            f"all of them one folder on a file system that all hosts see"
        )


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


def of_rank(sharding: jax.sharding.NamedSharding, rank: int) -> jax.sharding.NamedSharding:
    """The sharding of [B T] for arrays with fewer axes, [B], or with more, [B T X]."""
    return jax.sharding.NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:rank]))


def put_batch(batch: Any, sharding: jax.sharding.Sharding, part: int = 0, parts: int = 1) -> Any:
    """The arrays of a batch on all devices of the sharding; each process gives its own devices
    their part of the whole batch.

    `batch` has the rows of the part that `own_part` names. Arrays without a time, [B], and with
    more than one, [B T X], are spread as far as the sharding of [B T] says.
    """

    def put(rows: np.ndarray) -> jax.Array:
        of_rows = of_rank(sharding, rows.ndim)
        if jax.process_count() == 1:
            return jax.device_put(rows, of_rows)
        size, first = parts * len(rows), part * len(rows)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return rows[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((size, *rows.shape[1:]), of_rows, piece)

    return jax.tree.map(lambda x: put(np.asarray(x)), batch)
