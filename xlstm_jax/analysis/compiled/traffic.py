"""How many bytes a kernel reads from and writes to its device's main memory."""

import collections
from collections.abc import Mapping, Sequence

from xlstm_jax.analysis.compiled.program import Instruction

SLICES = frozenset({"dynamic-slice", "slice", "gather"})  # read a part of their first operand
VIEWS = frozenset({"bitcast", "reshape", "get-tuple-element"})
DEEPEST = 4  # views of views that are followed


def fusion_traffic(body: Sequence[Instruction]) -> tuple[int, int]:
    """(bytes read, bytes written) of a fusion with these instructions.

    Each operand is read once. One that is only cut counts with its pieces, one that is only updated
    in place not at all, and an update writes what it puts there.
    """
    by_name = {instruction.name: instruction for instruction in body}
    uses: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
    for instruction in body:
        for place, operand in enumerate(instruction.operands):
            uses[operand].append((instruction, place))
    read = sum(_read(each, uses) for each in body if each.opcode == "parameter")
    return read, sum(_written(each, by_name) for each in body if each.is_root)


def _read(
    source: Instruction, uses: Mapping[str, list[tuple[Instruction, int]]], depth: int = 0
) -> int:
    """Bytes that are read of a parameter, or of a view of one."""
    total = 0
    for user, place in uses[source.name]:
        if user.opcode in SLICES and place == 0:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and place == 0:
            continue
        elif user.opcode in VIEWS and depth < DEEPEST:
            total += _read(user, uses, depth + 1)
        else:
            return source.bytes
    return min(total, source.bytes)


def _written(root: Instruction, by_name: Mapping[str, Instruction], depth: int = 0) -> int:
    if root.opcode == "tuple":
        return sum(_written(by_name[operand], by_name, depth) for operand in root.operands)
    if root.opcode in ("bitcast", "reshape", "copy") and depth < DEEPEST:
        inner = by_name.get(root.operands[0])
        if inner and inner.opcode in ("dynamic-update-slice", "bitcast", "reshape"):
            return _written(inner, by_name, depth + 1)
    if root.opcode == "dynamic-update-slice":
        return by_name[root.operands[1]].bytes
    if root.opcode == "scatter":
        return by_name[root.operands[-1]].bytes
    return root.bytes


def plain_traffic(instruction: Instruction, by_name: Mapping[str, Instruction]) -> tuple[int, int]:
    """(bytes read, bytes written) of an instruction that is a kernel by itself; `by_name` are
    those of its computation.
    """
    operands = [by_name[name] for name in dict.fromkeys(instruction.operands) if name in by_name]
    if instruction.opcode in ("dynamic-slice", "slice"):
        return instruction.bytes, instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return operands[1].bytes, operands[1].bytes
    read = sum(operand.bytes for operand in operands)
    if instruction.opcode.endswith("-start"):  # the result holds the operands too
        return read, max(0, instruction.bytes - read)
    return read, instruction.bytes
