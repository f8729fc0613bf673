"""A compiled program as XLA writes it (HLO text after optimisation): computations, their
instructions, how often each of them runs, and the source lines that they come from.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
# Here follow the kernel's code or settings, in which anything may stand, for up to 300 KB.
_CODE = re.compile(r", (?:backend_config|frontend_attributes)=")
# Of operands in an instruction, in the order of its text: f(%a, bf16[2]{0} %b)
_OPERAND = re.compile(r"%([\w.\-]+)")
RUNS_WHAT_IT_CALLS = frozenset({"while", "conditional", "call", "async-start"})
ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # in a layout: the array is not in the device's main memory


class Array(NamedTuple):
    """An array of a type such as (f32[2,3]{1,0}, s32[])."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the device's main memory: none of what the compiler keeps on the chip."""
        return 0 if ON_CHIP.search(self.layout) else self.size * item_bytes(self.dtype)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        result: its type, as text.
        operands: names of instructions of the same computation.
        text: what follows the opcode, as XLA writes it.
        called: (how, name) of the computations that it names: ("body", "region_3").
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    text: str
    called: tuple[tuple[str, str], ...]
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of the result."""
        return arrays(self.result)

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        match = _TARGET.search(self.text) if self.opcode == "custom-call" else None
        return match and match[1]

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in `text`."""
        match = re.search(pattern, self.text)
        return match and match[1]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: name -> instructions.
        entry: name of the one that is called.
        header: the text before the first computation, with its tables of source lines.
    """

    computations: Mapping[str, list[Instruction]]
    entry: str | None
    header: list[str]

    def times(self) -> dict[str, int]:
        """How often each computation runs. A branch counts as taken, a loop without a known number
        of trips as one trip.
        """
        callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
        for name, instructions in self.computations.items():
            for instruction in instructions:
                trips = self.trips(instruction) or 1 if instruction.opcode == "while" else 1
                for _, called in instruction.called:
                    callers[called].append((name, trips))

        @functools.cache
        def times(name: str) -> int:
            if name == self.entry:
                return 1
            return sum(times(caller) * trips for caller, trips in callers[name])

        return {name: times(name) for name in self.computations}

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs, None where that is not known. The TPU compiler doesn't say: there
        its condition compares a counter, which begins at 0, with a constant.
        """
        if match := _TRIPS.search(loop.text):
            return int(match[1])
        condition = self.computations.get(dict(loop.called)["condition"], [])
        lines = [f" {line.result} {line.opcode}({line.text}" for line in condition]
        bounds = [int(match[1]) for line in lines if (match := _BOUND.search(line))]
        compared = any("direction=LT" in line for line in lines)
        return bounds[0] if compared and len(bounds) == 1 else None

    def instructions(self) -> Iterator[tuple[int, Instruction]]:
        """(times that it runs, instruction), those inside fusions too."""
        times = self.times()
        for name, instructions in self.computations.items():
            for instruction in instructions:
                if times[name]:
                    yield times[name], instruction

    def launched(self) -> Iterator[tuple[int, str, Instruction]]:
        """(times that it runs, its computation, instruction) of what the device is asked to do one
        by one: no instructions inside fusions. A loop's condition belongs to it only where the
        number of trips is not known before.
        """
        times = self.times()
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.computations:
                continue
            seen.add(name)
            for instruction in self.computations[name]:
                yield times[name], name, instruction
                if instruction.opcode in RUNS_WHAT_IT_CALLS:
                    known = instruction.opcode == "while" and self.trips(instruction) is not None
                    waiting += [
                        called
                        for how, called in instruction.called
                        if not (how == "condition" and known)
                    ]


def read_program(text: str) -> Program:
    """A program from the text of `jax.stages.Compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, header = None, []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            computations[name := match[2]] = []
            entry = name if match[1] else entry
        elif not computations:
            header.append(line)
        elif match := _INSTRUCTION.match(line):
            computations[name].append(_instruction(*match.groups()))
    return Program(computations, entry, header)


def _instruction(root: str | None, name: str, result: str, opcode: str, rest: str) -> Instruction:
    code = _CODE.search(rest)
    attributes = rest[: code.start()] if code and opcode == "custom-call" else rest
    called = []
    for how, one, several in _CALLED.findall(attributes):
        names = [one] if one else re.findall(r"[\w.\-]+", several)
        called += [(how or "branch", each) for each in names]
    operands = () if opcode in ("parameter", "constant") else _operands(attributes)
    return Instruction(name, opcode, result, operands, rest, tuple(called), bool(root))


def _operands(text: str) -> tuple[str, ...]:
    """Names of the operands: what is before the parenthesis that closes them."""
    depth = 1
    for end, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if not depth:
            return tuple(_OPERAND.findall(text[:end]))
    return ()


def arrays(result: str) -> list[Array]:
    """The arrays of a type, in order; tokens are none."""
    return [
        Array(dtype, tuple(int(size) for size in shape.split(",") if size), layout)
        for dtype, shape, layout in _ARRAY.findall(result)
        if dtype != "token"
    ]


def item_bytes(dtype: str) -> int:
    """Bytes of one element; types below a byte take one."""
    bits = int((re.search(r"\d+", dtype) or [8])[0])  # pred has no number
    return max(bits, 8) // 8
