"""What ptxas says of GPU kernels, from the files that XLA and Mosaic GPU leave when they compile.

Of Triton kernels XLA leaves the PTX, which ptxas compiles here once more for its report; Mosaic GPU
leaves what its own ptxas said.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple


class Kernel(NamedTuple):
    """What ptxas says of one kernel; spilled are the bytes that a thread writes to memory and reads
    from there, shared is in bytes and holds what a launch asks for where that is known.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    wgmma: int
    mma: int


def triton_kernels(folder: Path, op: str) -> list[Kernel]:
    """The kernels among XLA's PTX files: those named for an op. XLA's own fusions are left out."""
    found = []
    for path in sorted(folder.glob("*.ptx")):
        text = path.read_text()
        entry = re.search(r"\.entry\s+(\w+)", text)
        if entry and entry[1].startswith(op):
            arch = re.search(r"\.target\s+(\w+)", text)[1]
            said = subprocess.run(
                [_ptxas(), f"-arch={arch}", "-v", str(path), "-o", os.devnull],
                capture_output=True,
                text=True,
            )
            found.append(
                _kernel(
                    entry[1],
                    text,
                    said.stderr + said.stdout,
                    _triton_shared(text, folder, entry[1]),
                )
            )
    return found


def _triton_shared(ptx: str, folder: Path, name: str) -> int:
    """Shared memory of a Triton kernel: that of its launch, from XLA's list of launches."""
    for path in folder.glob("*.thunk_sequence.txt"):
        found = re.search(rf"\s{name} grid:.*shared_memory: (\d+) bytes", path.read_text())
        if found:
            return int(found[1])
    return 0


def mosaic_kernels(folder: Path) -> list[Kernel]:
    """Those that the compiler left a log of; kernels that equal another are compiled once."""
    found = []
    for path in sorted(folder.glob("*.ptxas")):
        launch = re.compile(r"gpu\.launch_func .* dynamic_shared_memory_size %c(\d+)_i32")
        with path.with_suffix(".mlir-passes.log").open() as passes:
            shared = next((int(match[1]) for line in passes if (match := launch.search(line))), 0)
        found.append(
            _kernel(path.stem, path.with_suffix(".ptx").read_text(), path.read_text(), shared)
        )
    return found


def _kernel(name: str, ptx: str, said: str, shared: int) -> Kernel:
    name = re.sub(r"_+\d+$", "", name)  # of several calls of one kernel
    registers = max(map(int, re.findall(r"[Uu]sed (\d+) registers", said)), default=0)
    # not the warning before it, which has the same numbers
    spills = re.findall(r"stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    spilled = sum(int(number) for both in spills for number in both)
    return Kernel(
        name,
        registers,
        spilled,
        shared,
        ptx.count("wgmma.mma_async"),
        len(re.findall(r"(?<!g)mma\.sync", ptx)),
    )


def _ptxas() -> str:
    """ptxas of the same wheels that XLA takes it from."""
    import nvidia.cu13

    return str(Path(list(nvidia.cu13.__path__)[0]) / "bin" / "ptxas")
