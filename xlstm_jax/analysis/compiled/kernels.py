"""The kernels of a compiled program: what its device is asked to do, one after the other."""

import collections
from typing import NamedTuple

from xlstm_jax.analysis.compiled.origin import Frame, Sources, body_of, part_of, place, reader_of
from xlstm_jax.analysis.compiled.program import Array, Instruction, Program
from xlstm_jax.analysis.compiled.tiles import strided_tiles
from xlstm_jax.analysis.compiled.traffic import fusion_traffic, plain_traffic
from xlstm_jax.analysis.compiled.work import Work, work_of

# Targets of custom calls that are a backend's kernels, and the backend that makes them.
KERNELS = {
    "tpu_custom_call": "pallas_tpu",
    "mosaic_gpu": "pallas_gpu",  # jax 0.11
    "mosaic_gpu_v2": "pallas_gpu",  # jax 0.12
    "__gpu$xla.gpu.triton": "pallas_triton",
    "__cudnn$fmhaSoftmax": "cudnn",
    "__cudnn$fmhaSoftmaxBackward": "cudnn",
}
NO_KERNELS = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "iota", "partition-id", "replica-id", "add-dependency", "opt-barrier",
    "async-start",
})  # fmt: skip
FUSIONS = frozenset({"fusion", "fusion-start"})


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
        times: how often a run of the program launches it.
        part: of a step (`origin`).
        emitter: who makes it: "loop", "input" and "custom" are XLA's fusions; "triton" those that
            it gives to Triton; else the target of a custom call, or the opcode.
        read, written: bytes in main memory, each time.
        work: what it computes, each time.
        estimated_flops, estimated_cycles: the kernel's author's and the TPU compiler's own
            estimates, where the program has them.
        strided: whether it is a Triton fusion that works through head-wise tiles (`tiles`).
        name: jax's for what asked for it.
        frames: the source lines that asked for it, the innermost first.
        operands, results: arrays.
        instruction: its name in the program.
    """

    times: int
    part: str
    emitter: str
    read: int
    written: int
    work: Work
    estimated_flops: int
    estimated_cycles: int
    strided: bool
    name: str
    frames: tuple[Frame, ...]
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    instruction: str

    @property
    def bytes(self) -> int:
        """Read and written, each time."""
        return self.read + self.written

    @property
    def flops(self) -> int:
        """Of products, each time."""
        return max(self.work.flops, self.estimated_flops)

    @property
    def is_pallas(self) -> bool:
        """Whether it is a kernel of ours."""
        return self.emitter in KERNELS

    @property
    def shapes(self) -> str:
        """Operands and results, as XLA writes them: bf16[8,4], f32[4] -> f32[8]."""
        before, after = (", ".join(map(str, arrays)) for arrays in (self.operands, self.results))
        return f"{before} -> {after}"

    @property
    def place(self) -> str:
        """The source line."""
        return place(self.frames)


def kernels_of(program: Program) -> list[Kernel]:
    """All kernels of a program, in no order."""
    reading = _Reading(program, Sources(program.header), {}, {})
    for name, instructions in program.computations.items():
        reading.by_name[name] = {instruction.name: instruction for instruction in instructions}
        users = reading.users[name] = collections.defaultdict(list)
        for instruction in instructions:
            for operand in instruction.operands:
                users[operand].append(instruction)
    return [
        _kernel(times, instruction, computation, reading)
        for times, computation, instruction in program.launched()
        if times
        and instruction.opcode not in NO_KERNELS
        and not instruction.opcode.endswith(("-done", "-update"))
    ]


class _Reading(NamedTuple):
    """A program with what is looked up in it: instructions and their users by computation."""

    program: Program
    sources: Sources
    by_name: dict[str, dict[str, Instruction]]
    users: dict[str, dict[str, list[Instruction]]]


def _kernel(times: int, instruction: Instruction, computation: str, reading: _Reading) -> Kernel:
    program, sources, neighbours = reading.program, reading.sources, reading.by_name[computation]
    operands = [neighbours[name] for name in instruction.operands if name in neighbours]
    called = [name for how, name in instruction.called if how == "calls"]
    strided = False
    if instruction.opcode in FUSIONS and called:
        own = program.computations[called[0]]
        read, written = fusion_traffic(own)
        work = work_of(own, program.computations)
        strided = strided_tiles(instruction, own)
    else:
        read, written = plain_traffic(instruction, neighbours)
        work = _alone(instruction, operands, program)
    named = reader_of(instruction, reading.users[computation])
    body = body_of(instruction, program)
    frames = next((found for each in (named, *body[::-1]) if (found := sources.frames(each))), ())
    return Kernel(
        times=times,
        part=part_of(instruction, body, frames, bool(work.products), sources),
        emitter=_emitter(instruction),
        read=read,
        written=written,
        work=work,
        estimated_flops=int(instruction.attribute(r'"cost_estimate":\{"flops":"?(\d+)') or 0),
        estimated_cycles=int(instruction.attribute(r'"estimated_cycles":"?(\d+)') or 0),
        strided=strided,
        name=named.attribute(r'op_name="([^"]*)"') or "",
        frames=frames,
        operands=tuple(array for operand in operands for array in operand.arrays),
        results=tuple(instruction.arrays),
        instruction=instruction.name,
    )


def _alone(instruction: Instruction, operands: list[Instruction], program: Program) -> Work:
    """What an instruction computes that is a kernel by itself."""
    placed = [operand._replace(opcode="parameter", operands=(), called=()) for operand in operands]
    return work_of([*placed, instruction], program.computations)


def _emitter(instruction: Instruction) -> str:
    if instruction.opcode not in FUSIONS:
        return instruction.target or instruction.opcode
    if "triton" in (kind := instruction.attribute(r'"kind":"([^"]*)"') or ""):
        return "triton"
    return kind.strip("_") or (instruction.attribute(r"kind=k(\w+)") or "").lower()
