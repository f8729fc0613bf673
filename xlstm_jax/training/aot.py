"""`train.py --aot=v5p:4x4x4`: compiles a configuration's training step for devices that are not
there, and says whether it fits.
"""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.analysis.hlo import collective_bytes, kernel_calls
from xlstm_jax.config import Config
from xlstm_jax.data.loader import Batch
from xlstm_jax.models import build_model
from xlstm_jax.parallel import batch_sharding, make_mesh
from xlstm_jax.parallel.topology import HBM_BYTES, absent_devices
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state
from xlstm_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class StepReport:
    """A training step as it was compiled, or was not.

    Attributes:
        arguments, temporaries, peak: bytes on one device; peak is None where the compiler doesn't
            say.
        memory: bytes that one device has.
        needed: bytes that the compiler says it needs where the step does not fit.
        collectives: bytes of the results of one step's collectives on one device, by kind; None
            where they can't be read.
        kernels: calls of Pallas kernels in one step on one device, by backend; everything else is
            XLA's. None as above.
        flops: the model's, of one step on all devices.
    """

    topology: str
    devices: int
    fits: bool
    memory: float
    flops: float
    seconds: float
    accumulation_steps: int
    arguments: int | None = None
    temporaries: int | None = None
    peak: int | None = None
    needed: float | None = None
    collectives: dict[str, int] | None = None
    kernels: dict[str, int] | None = None

    def lines(self) -> list[str]:
        """For the terminal."""
        head = f"{self.topology}: {self.devices} devices of {_gigabytes(self.memory)}, {'fits' if self.fits else 'DOES NOT FIT'}"
        work = f"model FLOPs per step {self.flops:.3e}, accumulation steps {self.accumulation_steps}, compiled in {self.seconds:.0f} s"
        if not self.fits:
            return [head, f"needed: {_gigabytes(self.needed)} per device", work]
        moved = _listed(self.collectives, lambda kind, size: f"{kind} {_gigabytes(size)}", "none")
        called = _listed(
            self.kernels,
            lambda name, number: f"{name} x {number}",
            "none, the cells run as XLA code",
        )
        return [
            head,
            f"memory per device: arguments {_gigabytes(self.arguments)}, temporaries "
            f"{_gigabytes(self.temporaries)}, peak "
            f"{_gigabytes(self.peak)}",
            f"collectives per device and step: {moved}",
            f"kernels per device and step: {called}",
            work,
        ]


def compile_step(config: Config, topology: str) -> StepReport:
    """Compiles the training step of a configuration for a topology (`absent_devices`).

    Raises:
        UserError: the topology or the configuration's mesh is not possible there.
    """
    devices = absent_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    rows, length = config.data.batch_size, config.data.context_length
    tokens = batch_sharding(mesh, rows, length, accumulation_steps=config.train.accumulation_steps)
    flops = training_flops_per_token(config.model) * rows * length
    chip = topology.partition(":")[0]
    known = {
        "topology": topology,
        "devices": len(devices),
        "memory": HBM_BYTES[chip],
        "flops": flops,
        "accumulation_steps": config.train.accumulation_steps,
    }
    with jax.set_mesh(mesh):
        schedule = make_schedule(config.optimizer, config.train.steps)
        model, optimizer = build_model(config.model), make_optimizer(config.optimizer, schedule)
        state = abstract_state(model, optimizer, config.train, mesh)
        ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=tokens)
        batch = Batch(ids, ids, ids)
        started = time.monotonic()
        try:
            compiled = (
                make_train_step(model, optimizer, schedule, config).lower(state, batch).compile()
            )
        except jax.errors.JaxRuntimeError as error:
            if (needed := needed_bytes(str(error))) is None:
                raise
            return StepReport(
                **known, fits=False, needed=needed, seconds=time.monotonic() - started
            )
    memory, text = compiled.memory_analysis(), _text_of(compiled)
    peak = memory.peak_memory_in_bytes or None
    used = peak or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return StepReport(
        **known,
        fits=used <= HBM_BYTES[chip],
        needed=used,
        seconds=time.monotonic() - started,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        collectives=None if text is None else collective_bytes(text),
        kernels=None if text is None else kernel_calls(text),
    )


def _text_of(compiled: jax.stages.Compiled) -> str | None:
    """The program's HLO; None where jaxlib can't read it (libtpu 0.0.51's asynchronous collectives
    of large programs with 0.10.2).
    """
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def needed_bytes(message: str) -> float | None:
    """What the TPU compiler says a program needs that does not fit; None for any other error.

    It says "Used 30.52G of 15.75G hbm" or "required for HLO temporaries (540.97G) exceeds available
    HBM (15.75G)".
    """
    match = re.search(
        r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm|\(([\d.]+)([KMGT])\) exceeds available HBM",
        message,
    )
    if not match:
        return None
    number, unit = match.group(1, 2) if match[1] else match.group(3, 4)
    return float(number) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]


def write_report(report: StepReport, folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Writes it as JSON; returns the file."""
    file = pathlib.Path(folder) / f"{name}_{report.topology.replace(':', '_')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return file


def _listed(counts: dict[str, int] | None, words: Callable[[str, int], str], nothing: str) -> str:
    if counts is None:
        return "unknown, this jaxlib can't read the program"
    return ", ".join(words(name, count) for name, count in sorted(counts.items())) or nothing


def _gigabytes(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"


def report_on(config: Config, topology: str, folder: str, name: str) -> None:
    """What `train.py --aot` does: compiles, prints and writes the report."""
    report: Any = compile_step(config, topology)
    print(*report.lines(), write_report(report, folder, name), sep="\n", flush=True)
