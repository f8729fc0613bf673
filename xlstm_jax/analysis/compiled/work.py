"""How much a kernel computes: FLOPs of its products and steps of its elementwise part."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xlstm_jax.analysis.compiled.program import Array, Instruction, arrays, item_bytes

Computations = Mapping[str, list[Instruction]]

# Steps of one lane for one element, where it is not one: what they expand to on a GPU.
STEPS = {
    "exponential": 6, "exponential-minus-one": 10, "log": 8, "log-plus-one": 10, "tanh": 12,
    "logistic": 12, "divide": 6, "rsqrt": 4, "sqrt": 6, "power": 20, "cosine": 20, "sine": 20,
    "erf": 15, "remainder": 10,
    # An element's place is computed and compared, and it is loaded by itself.
    "slice": 4, "dynamic-slice": 4, "pad": 4, "concatenate": 4, "gather": 6, "reverse": 4,
    "dynamic-update-slice": 4, "select-and-scatter": 8, "scatter": 8,
}  # fmt: skip
FREE = frozenset({"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "broadcast"})
TRANSCENDENTAL = frozenset({"exponential", "tanh", "logistic"})


class Product(NamedTuple):
    """A product of matrices.

    Attributes:
        batch, rows, contracted, columns: how many such products, and their M, K and N.
        dtype: of its operands.
        run: bytes that one of the products finds side by side in its larger operand.
        exact: whether float32 operands are multiplied as such.
    """

    batch: int
    rows: int
    contracted: int
    columns: int
    dtype: str
    run: int = 2**30
    exact: bool = False

    @property
    def flops(self) -> int:
        """A multiplication and an addition are two."""
        return 2 * self.batch * self.rows * self.contracted * self.columns


class Work(NamedTuple):
    """What one run of a kernel computes.

    Attributes:
        steps: of single lanes, for everything that is no product.
        transcendental: whether it has exponentials and the like.
    """

    products: tuple[Product, ...] = ()
    steps: int = 0
    transcendental: bool = False

    @property
    def flops(self) -> int:
        """Of the products."""
        return sum(product.flops for product in self.products)


def work_of(body: Sequence[Instruction], computations: Computations) -> Work:
    """What instructions compute that are one kernel, those of inner fusions included."""
    products, steps, transcendental = [], 0, False
    types = {instruction.name: instruction.arrays for instruction in body}
    for instruction in body:
        for inner in _inner(instruction, computations):
            work = work_of(inner, computations)
            products += work.products
            steps += work.steps
            transcendental |= work.transcendental
        if (product := product_of(instruction, types)) is not None:
            products.append(product)
        elif instruction.opcode not in FREE:
            size = _elements(instruction, types)
            steps += size * STEPS.get(instruction.opcode, 1)
            transcendental |= instruction.opcode in TRANSCENDENTAL
    return Work(tuple(products), steps, transcendental)


def _elements(instruction: Instruction, types: Mapping[str, Sequence[Array]]) -> int:
    """Of how many elements an instruction takes a step: a reduction of those that it reads, an
    update of those that it puts in.
    """
    operands = [types[name][0].size for name in instruction.operands if types.get(name)]
    if instruction.opcode in ("reduce", "reduce-window") and operands:
        return operands[0]
    if instruction.opcode == "dynamic-update-slice" and len(operands) > 1:
        return operands[1]
    return instruction.arrays[0].size if instruction.arrays else 0


def _inner(instruction: Instruction, computations: Computations) -> Iterator[list[Instruction]]:
    if instruction.opcode == "fusion":
        for how, name in instruction.called:
            if how == "calls":
                yield computations.get(name, [])


def product_of(instruction: Instruction, types: Mapping[str, Sequence[Array]]) -> Product | None:
    """The product that an instruction is; None if it is none. `types` are those of its
    computation's instructions.
    """
    if instruction.opcode == "dot":
        return _dot(instruction, types)
    if instruction.opcode == "convolution":
        return _convolution(instruction, types)
    if instruction.target and re.search("gemm|cublas|matmul", instruction.target):
        return _dot(instruction, types)
    return None


def _dot(instruction: Instruction, types: Mapping[str, Sequence[Array]]) -> Product | None:
    left, right = (types.get(name, [None])[0] for name in instruction.operands[:2])
    contracted = _dimensions(instruction, "lhs_contracting_dim")
    batch = _dimensions(instruction, "lhs_batch_dim")
    right_batch = _dimensions(instruction, "rhs_batch_dim")
    if left is None or right is None:
        return None
    batches = math.prod(left.shape[axis] for axis in batch)
    depth = math.prod(left.shape[axis] for axis in contracted)
    rows = left.size // (batches * depth) if batches * depth else 0
    columns = right.size // (batches * depth) if batches * depth else 0
    run = 2**30
    if batches > 1:
        larger = (left, batch) if left.bytes >= right.bytes else (right, right_batch)
        run = _side_by_side(*larger)
    exact = instruction.attribute(r"operand_precision=\{(highest)") is not None
    return Product(batches, rows, depth, columns, left.dtype, run, exact)


def _side_by_side(array: Array, batch: Sequence[int]) -> int:
    """Bytes before the next element of another product of the batch."""
    order = re.match(r"\{([\d,]+)", array.layout)
    axes = [int(axis) for axis in order[1].split(",")] if order else []
    run = item_bytes(array.dtype)
    for axis in axes or reversed(range(len(array.shape))):
        if axis in batch and array.shape[axis] > 1:
            break
        run *= array.shape[axis]
    return run


def _dimensions(instruction: Instruction, name: str) -> list[int]:
    """As a dot writes them, lhs_contracting_dims={1}, or a call of cuBLAS,
    "lhs_contracting_dimensions":["1"].
    """
    found = instruction.attribute(rf"{name}s=\{{([\d,]*)\}}") or instruction.attribute(
        rf'{name}ensions":\[([^\]]*)\]'
    )
    return [int(axis) for axis in re.findall(r"\d+", found or "")]


def _convolution(instruction: Instruction, types: Mapping[str, Sequence[Array]]) -> Product | None:
    """The TPU compiler writes products as convolutions, and their batches as windows over inputs
    that were spread out (lhs_dilate) or filled up (pad), of which each output meets one element.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    left, right = (types.get(name, [None])[0] for name in instruction.operands[:2])
    if not labels or right is None or left is None:
        return None
    out = arrays(instruction.result)[0]
    taps = 1.0
    for number, window in enumerate(_windows(instruction)):
        outputs = out.shape[labels[3].index(str(number))]
        taps *= _met(outputs, left.shape[labels[1].index(str(number))], window) / outputs
    columns = right.shape[labels[2].index("o")]
    contracted = max(1, round(right.shape[labels[2].index("i")] * taps))
    return Product(1, out.size // columns, contracted, columns, left.dtype)


def _windows(instruction: Instruction) -> list[dict[str, int]]:
    """By spatial axis: size, stride, pad (in front), lhs_dilate, rhs_dilate."""
    found = re.search(r"window=\{([^}]*)\}", instruction.text)
    if found is None:
        return []
    fields = dict(re.findall(r"(\w+)=(\S+)", found[1]))
    number = len(fields["size"].split("x"))
    absent = {"size": 1, "stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
    of_name = {
        name: [int(value.partition("_")[0]) for value in fields[name].split("x")]
        if name in fields
        else [without] * number
        for name, without in absent.items()
    }
    return [{name: of_name[name][axis] for name in absent} for axis in range(number)]


def _met(outputs: int, inputs: int, window: Mapping[str, int]) -> int:
    """How many pairs of an output and a tap of its window meet an element of the input, and not
    what lies between or beyond them.
    """
    starts = np.arange(outputs) * window["stride"] - window["pad"]
    places = starts[:, None] + np.arange(window["size"]) * window["rhs_dilate"]
    spread = window["lhs_dilate"]
    within = (places >= 0) & (places <= (inputs - 1) * spread)
    return int(np.sum(within & (places % spread == 0)))
