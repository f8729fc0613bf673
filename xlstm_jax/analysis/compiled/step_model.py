"""What a compiled step does, as a table: the parts of a step with their kernels' launches, bytes,
FLOPs and modelled time, and the costliest kernels with their source lines.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from pallas_kernels.chips import Chip, chip_of
from xlstm_jax.analysis.compiled.kernels import Kernel, kernels_of
from xlstm_jax.analysis.compiled.program import Program
from xlstm_jax.analysis.compiled.rates import Time, time_of

COSTLIEST = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """All kernels of one part of a step, or of the step.

    Attributes:
        launches: of kernels.
        bytes: read and written in main memory.
        flops: of products.
        milliseconds: modelled.
    """

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    milliseconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class StepModel:
    """The kernels of one run of a program on one device, with the time that each should take."""

    chip: Chip
    kernels: Sequence[tuple[Kernel, Time]]

    @property
    def milliseconds(self) -> float:
        """Of all kernels, one after the other."""
        return self.whole.milliseconds

    @property
    def whole(self) -> Part:
        """All kernels."""
        return _sum(self.kernels)

    @property
    def parts(self) -> dict[str, Part]:
        """By part of the step, the longest first."""
        by_part = collections.defaultdict(list)
        for kernel, time in self.kernels:
            by_part[kernel.part].append((kernel, time))
        parts = {name: _sum(kernels) for name, kernels in by_part.items()}
        return dict(sorted(parts.items(), key=lambda item: -item[1].milliseconds))

    @property
    def alike(self) -> list[list[tuple[Kernel, Time]]]:
        """Kernels of one source line, of the same shapes, together; the costliest first."""
        groups = collections.defaultdict(list)
        for kernel, time in self.costliest:
            groups[kernel.place, kernel.shapes, kernel.part].append((kernel, time))
        return sorted(groups.values(), key=lambda kernels: -_sum(kernels).milliseconds)

    @property
    def costliest(self) -> list[tuple[Kernel, Time]]:
        """All kernels, the longest in sum first."""
        return sorted(self.kernels, key=lambda item: -item[0].times * item[1].seconds)

    def lines(self) -> list[str]:
        """The table for the terminal."""
        whole = self.whole
        fitted = "" if self.chip.name == "h100" else ", with an H100's shares of the data sheet"
        lines = [
            f"modelled, not measured{fitted}: {whole.milliseconds:.2f} ms on one device",
            f"  {'part':<18}{'ms':>9}{'share':>7}{'launches':>10}{'GB':>9}{'TFLOP':>9}",
        ]
        for name, part in {**self.parts, "all": whole}.items():
            share = part.milliseconds / whole.milliseconds if whole.milliseconds else 0
            lines.append(
                f"  {name:<18}{part.milliseconds:>9.2f}{share:>7.1%}{part.launches:>10,}"
                f"{part.bytes / 1e9:>9.1f}{part.flops / 1e12:>9.2f}"
            )
        lines.append("the costliest kernels: ms in a step, times, what bounds them, where from")
        for kernels in self.alike[:COSTLIEST]:
            (kernel, time), alike = kernels[0], _sum(kernels)
            lines.append(
                f"  {alike.milliseconds:>8.2f} {alike.launches:>5} x {time.bound:<10} "
                f"{kernel.part:<17}{kernel.place}"[:100]
            )
        return lines

    def details(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {
            "chip": self.chip._asdict(),
            "all": dataclasses.asdict(self.whole),
            "parts": {name: dataclasses.asdict(part) for name, part in self.parts.items()},
            "kernels": [
                {
                    "part": kernel.part,
                    "times": kernel.times,
                    "microseconds": time.seconds * 1e6,
                    "bound": time.bound,
                    "read": kernel.read,
                    "written": kernel.written,
                    "flops": kernel.flops,
                    "emitter": kernel.emitter,
                    "shapes": kernel.shapes,
                    "products": [product._asdict() for product in kernel.work.products],
                    "lane_steps": kernel.work.steps,
                    "strided": kernel.strided,
                    "compiler_cycles": kernel.estimated_cycles,
                    "name": kernel.name,
                    "instruction": kernel.instruction,
                    "source": [f"{f.file}:{f.line} {f.function}" for f in kernel.frames],
                }
                for kernel, time in self.costliest
            ],
        }


def model_of(program: Program, device_kind: str) -> StepModel | None:
    """The model of a program on a device, "NVIDIA H100" or "TPU v5p"; None for a device whose rates
    are not known (`pallas_kernels.chips`).
    """
    chip = chip_of(device_kind)
    if chip is None or chip.bandwidth is None:
        return None
    return StepModel(chip, [(kernel, time_of(kernel, chip)) for kernel in kernels_of(program)])


def _sum(kernels: Sequence[tuple[Kernel, Time]]) -> Part:
    return Part(
        launches=sum(kernel.times for kernel, _ in kernels),
        bytes=sum(kernel.times * kernel.bytes for kernel, _ in kernels),
        flops=sum(kernel.times * kernel.flops for kernel, _ in kernels),
        milliseconds=1e3 * sum(kernel.times * time.seconds for kernel, time in kernels),
    )
