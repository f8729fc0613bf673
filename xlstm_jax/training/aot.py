"""`train.py --aot=v5p:4x4x4`: compiles a configuration's training step for devices that are not
there, and says whether it fits.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from xlstm_jax.analysis.compiled.program import read_program
from xlstm_jax.analysis.compiled.step_model import StepModel, model_of
from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.analysis.hlo import MADE_WHEN_LOADED, collective_bytes, kernel_calls
from xlstm_jax.config import Config, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.interrupts import stderr_dropped
from xlstm_jax.models.remat import AUTO
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.topology import HBM_BYTES, absent_devices
from xlstm_jax.paths import check_can_be_written
from xlstm_jax.progress import counted, doing, sized
from xlstm_jax.training.compiling import compiled_for, needed_bytes, used_bytes
from xlstm_jax.training.memory import choose, with_choice


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
        kernels: calls of kernels in one step on one device, by backend; everything else is XLA's.
            None as above.
        model: what the step's kernels do, and how long each should take; None as above.
        unread: why they are None.
        flops: the model's, of one step on all devices.
        choice: what `model.remat` "auto" stands for, and why.
    """

    topology: str
    devices: int
    fits: bool
    memory: float
    flops: float
    seconds: float
    accumulation_steps: int
    choice: str | None = None
    arguments: int | None = None
    temporaries: int | None = None
    peak: int | None = None
    needed: float | None = None
    collectives: dict[str, int] | None = None
    kernels: dict[str, int] | None = None
    model: StepModel | None = None
    unread: str | None = None

    def lines(self) -> list[str]:
        """The report for the terminal."""
        verdict = "fits" if self.fits else "DOES NOT FIT"
        devices = counted(self.devices, "device")
        head = f"{self.topology}: {devices} of {_sized(self.memory)}, {verdict}"
        if self.choice is not None:
            head += f"\n{self.choice}"
        work = (
            f"model FLOPs per step {self.flops:.3e}, accumulation steps {self.accumulation_steps}, "
            f"compiled in {self.seconds:.0f} s"
        )
        if not self.fits:
            return [head, f"needed: {_sized(self.needed)} per device", work]
        memory = (
            f"memory per device: arguments {_sized(self.arguments)}, temporaries "
            f"{_sized(self.temporaries)}, peak {_sized(self.peak)}"
        )
        if self.collectives is None or self.kernels is None:
            return [head, memory, "collectives and kernels: unknown", f"  {self.unread}", work]
        moved = _listed(self.collectives, lambda kind, size: f"{kind} {_sized(size)}")
        called = _listed(self.kernels, lambda name, number: f"{name} x {number}")
        return [
            head,
            memory,
            f"collectives per device and step: {moved or 'none'}",
            f"kernels per device and step: {called or 'none, all of it runs as XLA code'}",
            *(
                f"  {name}'s are made by the GPU that loads the program: not checked here, and the "
                "memory\n  that they work in is not counted above"
                for name in sorted(MADE_WHEN_LOADED & self.kernels.keys())
            ),
            work,
            *([] if self.model is None else self.model.lines()),
        ]

    def facts(self) -> dict[str, Any]:
        """The report as JSON holds it, with the parts of the step's model and not its kernels."""
        facts = dataclasses.asdict(dataclasses.replace(self, model=None))
        if self.model is not None:
            facts["model"] = {
                "milliseconds": self.model.milliseconds,
                "parts": {
                    name: dataclasses.asdict(part) for name, part in self.model.parts.items()
                },
            }
        return facts


def compile_step(config: Config, topology: str) -> StepReport:
    """Compiles the training step of a configuration for a topology (`absent_devices`).

    Raises:
        UserError: the topology or the configuration's mesh is not possible there.
    """
    devices, rows = _devices(topology), config.data.batch_size
    mesh = make_mesh(config.mesh, devices)
    chip = topology.partition(":")[0]
    model = task_of(config).model(stacked=True)
    length = config.data.context_length
    known = {
        "topology": topology,
        "devices": len(devices),
        "memory": HBM_BYTES[chip],
        "flops": training_flops_per_token(model, length) * rows * length,
        "accumulation_steps": config.train.accumulation_steps,
    }
    started, compiled = time.monotonic(), None
    if config.model.remat == AUTO:
        choice = choose(config, mesh, topology, _say)
        config, compiled = with_choice(config, choice.remat), choice.compiled
        known["choice"] = choice.line()
    try:
        compiled = compiled or compiled_for(config, mesh, topology, _say)
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        return StepReport(**known, fits=False, needed=needed, seconds=time.monotonic() - started)
    with doing("reading the compiled program", _say):
        text, unread = _text_of(compiled)
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes or None
    used = used_bytes(compiled)
    read = text is not None
    return StepReport(
        **known,
        fits=used <= HBM_BYTES[chip],
        needed=used,
        seconds=time.monotonic() - started,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=peak,
        collectives=collective_bytes(text) if read else None,
        kernels=kernel_calls(text) if read else None,
        model=model_of(read_program(text), devices[0].device_kind) if read else None,
        unread=unread,
    )


def compiled_step(config: Config, topology: str) -> jax.stages.Compiled:
    """The training step of a configuration, compiled for a topology; raises as `compile_step`, and
    what the compiler raises where the step does not fit.
    """
    return compiled_for(config, make_mesh(config.mesh, _devices(topology)), topology, _say)


def _devices(topology: str) -> Sequence[jax.Device]:
    with stderr_dropped():  # libtpu's complaints that this is no TPU machine, with a C++ trace
        return absent_devices(topology)


def _text_of(compiled: jax.stages.Compiled) -> tuple[str | None, str | None]:
    """The program's HLO, or None and why it can't be had.

    jaxlib 0.10.2 can't read the asynchronous collectives of large programs that libtpu 0.0.51 made.
    It then prints a C++ stack trace beside the error, which is of no use to anybody.
    """
    try:
        with stderr_dropped():
            return compiled.as_text(), None
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        jaxlib = importlib.metadata.version("jaxlib")
        return None, f"jaxlib {jaxlib} can't read what was compiled, a newer one may: {reason}"


def write_report(report: StepReport, folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Writes it as JSON; returns the file."""
    file = pathlib.Path(folder) / f"{name}_{report.topology.replace(':', '_')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report.facts(), indent=2) + "\n")
    return file


def _listed(counts: dict[str, int], words: Callable[[str, int], str]) -> str:
    return ", ".join(words(name, count) for name, count in sorted(counts.items()))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sized(size: float | None) -> str:
    return "unknown" if size is None else sized(size)


def report_on(
    config: Config, topology: str, folder: str, name: str, details: str | None = None
) -> None:
    """What `train.py --aot` does: compiles, prints and writes the report; to the file `details` all
    kernels.
    """
    try:  # before minutes of compiling
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {folder!r} can't be made: {error.strerror}") from None
    if details is not None:
        check_new_file("--aot-details", details)
    report = compile_step(config, topology)
    print(*report.lines(), sep="\n", flush=True)  # first: writing it may fail
    print(write_report(report, folder, name), flush=True)
    if details is not None:
        print(write_details(report, details), flush=True)


def check_new_file(what: str, name: str) -> None:
    """Raises `UserError` unless a file of this name can be made."""
    if os.path.lexists(name):
        raise UserError(f"{what} {name!r} is there already; give another name, or remove it")
    check_can_be_written(what, pathlib.Path(name).parent)


def write_details(report: StepReport, name: str) -> str:
    """Writes all kernels of the step as JSON; returns the file's name.

    Raises:
        UserError: nothing is known of them.
    """
    if report.model is None:
        reason = report.unread or "the step does not fit" * (not report.fits)
        raise UserError(f"--aot-details: no kernels are known: {reason or 'of this chip no rates'}")
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    with open(name, "x") as file:
        json.dump(report.facts() | {"model": report.model.details()}, file, indent=1)
        file.write("\n")
    return name
