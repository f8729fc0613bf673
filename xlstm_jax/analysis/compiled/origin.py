"""Where a kernel comes from: the source lines that asked for it, and what part of a step it is."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xlstm_jax.analysis.compiled.program import Instruction, Program
from xlstm_jax.analysis.compiled.work import FREE, STEPS

# Parts of a step; those in pallas_kernels/NAME/ are parts named NAME.
PRODUCTS, NORMS, ELEMENTWISE, LOSS = "products", "norms", "elementwise", "loss"
OPTIMIZER, COPIES, COLLECTIVES, OTHER = "optimizer", "copies", "collectives", "other"

MOVES = FREE | {
    "copy", "copy-start", "transpose", "reshape", "slice", "slice-start", "dynamic-slice",
    "dynamic-update-slice", "concatenate", "pad", "reverse", "async-start", "iota",
}  # fmt: skip
_OURS = re.compile(r"(?:^|/)((?:xlstm_jax|pallas_kernels)/[\w/]+\.py)$")
_MACHINERY = re.compile(r"pallas_kernels/(derivatives|dispatch|sharded)\.py|xlstm_jax/parallel/")
_BEGINNING = re.compile(r"^xlstm_jax/(models/)?")
_OTHERS = re.compile(r"site-packages/|dist-packages/|/lib/python3|^<")
_OP = re.compile(r"^pallas_kernels/(\w+)/")
_LOSS = re.compile(r"^xlstm_jax/\w+/cross_entropy\.py$")
_TASK = re.compile(r"^xlstm_jax/(tasks|data)/")
_TRAINING = re.compile(r"^xlstm_jax/training/")
_MODEL = re.compile(r"^xlstm_jax/models/|^pallas_kernels/")
_NORM = re.compile(r"\w*Norm\.__call__$|^normalize$|_norm$")
_COLLECTIVE = re.compile(r"^(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)")


class Frame(NamedTuple):
    """A place in the source: `file` is relative to the project, or the end of a path elsewhere."""

    file: str
    line: int
    function: str


class Sources:
    """The source lines of a program's instructions."""

    def __init__(self, header: Sequence[str]):
        tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
        name = ""
        for line in header:
            if match := re.match(r"^(\d+) (.*)$", line):
                tables[name][int(match[1])] = match[2]
            else:
                name = line.strip()
        self._files = {key: _file(text.strip('"')) for key, text in tables["FileNames"].items()}
        self._functions = {key: text.strip('"') for key, text in tables["FunctionNames"].items()}
        self._places = {key: _numbers(text) for key, text in tables["FileLocations"].items()}
        self._frames = {key: _numbers(text) for key, text in tables["StackFrames"].items()}
        self._known: dict[int, tuple[Frame, ...]] = {}

    def frames(self, instruction: Instruction) -> tuple[Frame, ...]:
        """The project's own frames and those of its user, the innermost first."""
        if number := instruction.attribute(r"stack_frame_id=(\d+)"):
            return self._stack(int(number))
        file = instruction.attribute(r'source_file="([^"]*)"')  # jaxlib 0.10
        line = instruction.attribute(r"source_line=(\d+)")
        known = file and line and _file(file)
        return (Frame(known, int(line), ""),) if known else ()

    def _stack(self, number: int) -> tuple[Frame, ...]:
        if number not in self._known:
            frames, each, seen = [], number, set()
            while each in self._frames and each not in seen:
                seen.add(each)
                place = self._places.get(self._frames[each].get("file_location_id", 0), {})
                if file := self._files.get(place.get("file_name_id", 0)):
                    function = self._functions.get(place.get("function_name_id", 0), "")
                    frames.append(Frame(file, place.get("line", 0), function))
                # parents are written with one added, so that the outermost has itself
                each = self._frames[each].get("parent_frame_id", 1) - 1
            # a function that jax traced apart has its caller's frames too, and these twice
            self._known[number] = tuple(dict.fromkeys(frames))
        return self._known[number]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}


def _file(path: str) -> str | None:
    """A file of the project, or of its user by its last two names; None for libraries."""
    if match := _OURS.search(path):
        return match[1]
    return None if _OTHERS.search(path) else "/".join(path.split("/")[-2:])


def place(frames: Sequence[Frame]) -> str:
    """The innermost line and the two that called it from other files, innermost first; machinery
    that many call is left out where something else is there.
    """
    files: dict[str, Frame] = {}
    for frame in [frame for frame in frames if not _MACHINERY.match(frame.file)] or frames:
        files.setdefault(frame.file, frame)
    lines = [f"{_BEGINNING.sub('', frame.file)}:{frame.line}" for frame in files.values()]
    return " < ".join(lines[:3])


def part_of(
    kernel: Instruction,
    body: Sequence[Instruction],
    frames: Sequence[Frame],
    has_products: bool,
    sources: Sources,
) -> str:
    """The part of a step that a kernel is: that of most of what it computes. `body` are the
    instructions that it is made of, `frames` the kernel's own.
    """
    if _COLLECTIVE.match(kernel.opcode):
        return COLLECTIVES
    if all(each.opcode in MOVES for each in body):
        return COPIES
    weights: collections.Counter[str] = collections.Counter()
    for each in body:
        if each.opcode not in FREE and (known := sources.frames(each)):
            size = max([array.size for array in each.arrays] or [0])
            weights[_part(known)] += size * STEPS.get(each.opcode, 1)
    part = weights.most_common(1)[0][0] if weights else _part(frames)
    return PRODUCTS if has_products and part in (NORMS, ELEMENTWISE, OPTIMIZER, OTHER) else part


def _part(frames: Sequence[Frame]) -> str:
    if any(_LOSS.match(frame.file) for frame in frames):
        return LOSS
    for frame in frames:
        if match := _OP.match(frame.file):
            return match[1]
    if any(_NORM.search(frame.function) for frame in frames if _MODEL.match(frame.file)):
        return NORMS
    if any(_MODEL.match(frame.file) for frame in frames):
        return ELEMENTWISE
    if any(_TASK.match(frame.file) for frame in frames):
        return LOSS
    if any(_TRAINING.match(frame.file) for frame in frames):
        return OPTIMIZER
    return OTHER if frames else ELEMENTWISE


def reader_of(
    instruction: Instruction, users: Mapping[str, Sequence[Instruction]], depth: int = 4
) -> Instruction:
    """The instruction itself, or the first with a name of jax's that reads its result: XLA leaves
    the products without names that it makes for a single row.
    """
    if instruction.attribute(r'(op_name)="') or not depth:
        return instruction
    for user in users.get(instruction.name, ()):
        reader = reader_of(user, users, depth - 1)
        if reader.attribute(r'(op_name)="'):
            return reader
    return instruction


def body_of(kernel: Instruction, program: Program) -> list[Instruction]:
    """The instructions that a kernel is made of, those of fusions inside it too."""
    called: Mapping[str, list[Instruction]] = program.computations
    inner = [
        each
        for how, name in kernel.called
        if how == "calls"
        for instruction in called.get(name, [])
        for each in body_of(instruction, program)
    ]
    return inner or [kernel]
