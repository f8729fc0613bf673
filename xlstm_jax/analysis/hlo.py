"""What a compiled program does, read from its HLO text: bytes of collectives and calls of kernels,
loops counted with their trips.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Targets of custom calls that are a backend's kernels, and the backend that makes them.
KERNELS = {
    "tpu_custom_call": "pallas_tpu",
    "mosaic_gpu": "pallas_gpu",  # jax 0.11
    "mosaic_gpu_v2": "pallas_gpu",  # jax 0.12
    "__gpu$xla.gpu.triton": "pallas_triton",
    "__cudnn$fmhaSoftmax": "cudnn",
    "__cudnn$fmhaSoftmaxBackward": "cudnn",
}
# Of these backends a compiled program only holds the calls: the GPU that loads it makes the kernels
# and says how much memory they need besides.
MADE_WHEN_LOADED = frozenset({"cudnn"})

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of all collectives of one run on one device, by kind; those that do not
    occur are left out.

    The TPU compiler may run a collective while other work is done. It then appears as a chain of
    instructions, each with the whole result, some of them inside the loops of that other work. A
    chain counts once, as often as the instruction of it that runs least often.
    """
    total: dict[str, int] = collections.defaultdict(int)
    chains: dict[tuple[str, ...], int] = {}
    for times, result, opcode, line in _instructions(text):
        kind = opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        moved = times * _result_bytes(
            result, started=opcode.endswith("-start") and kind != "all-reduce"
        )
        if match := _CHAIN.search(line):
            chain = (kind, *match.groups())
            chains[chain] = min(moved, chains.get(chain, moved))
        else:
            total[kind] += moved
    for (kind, *_), moved in chains.items():
        total[kind] += moved
    return dict(total)


def kernel_calls(text: str) -> dict[str, int]:
    """How often one run calls the kernels of each backend that has some."""
    total: dict[str, int] = collections.defaultdict(int)
    for times, _, opcode, line in _instructions(text):
        target = _TARGET.search(line) if opcode == "custom-call" else None
        if target and target[1] in KERNELS:
            total[KERNELS[target[1]]] += times
    return dict(total)


def array_bytes(dtype: str, shape: str) -> int:
    """Bytes of an array such as f32[8,128]."""
    bits = int((re.search(r"\d+", dtype) or [8])[0])  # pred has no number
    return max(bits, 8) // 8 * math.prod(int(size) for size in shape.split(",") if size)


def _result_bytes(result: str, *, started: bool) -> int:
    """Bytes of an instruction's result. That of a collective which is `started` and finished apart
    holds its operands first: the second half counts.
    """
    sizes = [array_bytes(*array) for array in _ARRAY.findall(result) if array != ("u32", "")]
    return sum(sizes[len(sizes) // 2 :] if started else sizes)


def _instructions(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(times that it runs, type of the result, opcode, line) of every instruction."""
    bodies: dict[str, list[str]] = {}
    entry = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            bodies[name := header[2]] = []
            entry = name if header[1] else entry
        elif bodies:
            bodies[name].append(line)
    times = _times(bodies, entry)
    for name, lines in bodies.items():
        for line in lines:
            if times[name] and (match := _INSTRUCTION.match(line)):
                yield times[name], match[1], match[2], line


def _times(bodies: Mapping[str, list[str]], entry: str | None) -> dict[str, int]:
    """How often each computation runs; a branch counts as taken, a loop without a known number of
    trips as one.
    """
    callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = _trips(line, bodies) if " while(" in line else 1
            for one, several in _CALLED.findall(line):
                for called in (one, *re.findall(r"[\w.\-]+", several)):
                    if called:
                        callers[called].append((name, trips))

    @functools.cache
    def times(name: str) -> int:
        return 1 if name == entry else sum(times(caller) * trips for caller, trips in callers[name])

    return {name: times(name) for name in bodies}


def _trips(loop: str, bodies: Mapping[str, list[str]]) -> int:
    """How often a loop runs. The TPU compiler doesn't say: there its condition compares a counter,
    which begins at 0, with a constant.
    """
    if match := _TRIPS.search(loop):
        return int(match[1])
    condition = bodies.get(_CONDITION.search(loop)[1], [])
    bounds = [int(match[1]) for line in condition if (match := _BOUND.search(line))]
    compared = any("direction=LT" in line for line in condition)
    return bounds[0] if compared and len(bounds) == 1 else 1
