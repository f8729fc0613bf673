"""Programs that are compiled on a machine without a GPU and run on one that has it: time on a lent
GPU goes into measuring.

A file holds XLA's executable for one device, a function of lists of arrays, and what these are. Its
products are cuBLAS's: of Triton kernels, XLA chooses the tiles by timing them, and where it can't,
they are bad. A step of 125M [1:0] took 2,890 ms on an H100 so, of which 2,719 were its products.
Read with the jax that wrote it.
"""

import functools
import importlib
import lzma
import pathlib
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from xlstm_jax.errors import UserError
from xlstm_jax.parallel import xla_flags

SUFFIX = ".program"
OPTIONS = xla_flags.compiler_options(xla_flags.TRAINING)
COMPRESSION = 6  # of lzma: 26 MB of a step with 24 blocks become 5
PRNG = "key"  # in the place of a key's dtype


class Leaf(NamedTuple):
    """An array that goes in: where it is in the arguments, shape and dtype."""

    path: str
    shape: tuple[int, ...]
    dtype: str


class Program(NamedTuple):
    """What a file holds.

    Attributes:
        donated: so many of the first arrays are given up.
        results: paths of what comes out.
        facts: of whoever prepared it.
    """

    jax: str
    leaves: list[Leaf]
    donated: int
    results: list[str]
    facts: dict[str, Any]
    executable: bytes


def prepare(
    file: pathlib.Path,
    function: Callable,
    arguments: tuple[Any, ...],
    *,
    donated: int = 0,
    options: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Compiles a function for the devices of the shardings of its arguments and writes the file.

    Args:
        arguments: trees of `jax.ShapeDtypeStruct`.
        donated: so many of the first arguments are given up.
        options: of the compiler, besides OPTIONS.
    """
    leaves, tree = jax.tree.flatten(arguments)
    first = len(jax.tree.leaves(arguments[:donated]))

    def flat(given: list[Any], rest: list[Any]) -> list[Any]:
        return jax.tree.leaves(function(*tree.unflatten([*given, *rest])))

    results = _paths(jax.eval_shape(function, *arguments))
    jitted = jax.jit(flat, donate_argnums=0, keep_unused=True)
    lowered = jitted.lower(leaves[:first], leaves[first:])
    compiled = lowered.compile(compiler_options=OPTIONS | (options or {}))
    executable, _, _ = serialize_executable.serialize(compiled)
    described = [
        Leaf(path, x.shape, PRNG if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.name)
        for path, x in zip(_paths(arguments), leaves, strict=True)
    ]
    content = Program(jax.__version__, described, first, results, facts or {}, executable)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".new")
    with lzma.open(beside, "wb", preset=COMPRESSION) as out:
        pickle.dump(tuple(content), out)
    beside.replace(file)


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


class Loaded(NamedTuple):
    """A program on the device: called with two lists, of the arrays that it may keep the memory of
    and of the others.
    """

    program: Program
    run: Any

    def drawn(self, of: Callable[[Leaf], str]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Both lists. `of` says what a leaf is: "normal", "zeros", "ones", or a number below which
        its integers are drawn.
        """
        shardings = jax.tree.leaves(self.run.input_shardings[0])
        arrays = [
            jax.device_put(_drawn(leaf, of(leaf), number), sharding)
            for number, (leaf, sharding) in enumerate(
                zip(self.program.leaves, shardings, strict=True)
            )
        ]
        return arrays[: self.program.donated], arrays[self.program.donated :]


def load(file: pathlib.Path) -> Loaded:
    """The program of a file.

    Raises:
        UserError: there is none, or another jax wrote it.
    """
    if not file.exists():
        raise UserError(f"there is no {file}; `python -m benchmarks.on_a_gpu --prepare` writes it")
    importlib.import_module("jax.experimental.mosaic.gpu")  # tells XLA where its library is
    with lzma.open(file) as data:
        program = Program(*pickle.load(data))
    if program.jax != jax.__version__:
        raise UserError(
            f"{file} was compiled by jax {program.jax}, and this is {jax.__version__}; prepare it "
            "with this one"
        )
    count = len(program.leaves)
    inputs = (([0] * program.donated, [0] * (count - program.donated)), {})
    trees = jax.tree.structure(inputs), jax.tree.structure([0] * len(program.results))
    run = serialize_executable.deserialize_and_load(
        program.executable, *trees, execution_devices=jax.devices()[:1]
    )
    return Loaded(program, run)


def _drawn(leaf: Leaf, what: str, seed: int) -> jax.Array:
    key = jax.random.key(seed)
    if leaf.dtype == PRNG:
        return jax.random.split(key, leaf.shape)
    if what == "zeros":
        return jnp.zeros(leaf.shape, leaf.dtype)
    if what == "ones":
        return jnp.ones(leaf.shape, leaf.dtype)
    if what == "normal":
        return _normal(key, leaf.shape, leaf.dtype)
    return jax.random.randint(key, leaf.shape, 0, int(what), leaf.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return (0.02 * jax.random.normal(key, shape)).astype(dtype)
