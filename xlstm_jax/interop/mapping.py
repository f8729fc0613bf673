"""One table of names and shapes, read in both directions.

An `Entry` ties one of our parameters to one or more of their tensors by an invertible `Transform`.
Import and export both follow from a list of entries; neither is written by itself. Arrays are
NumPy, so that nothing here needs PyTorch.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.interop.tensor_files import Tensor
from xlstm_jax.models.config import ModelConfig, check_model, read_model
from xlstm_jax.models.stack import block_name

Tensors = Mapping[str, np.ndarray]
Allocate = Callable[[tuple[int, ...], Any], np.ndarray]  # (shape, dtype) -> an array to be filled


class Transform(NamedTuple):
    """Their tensors (one argument each) to our parameter, and back to as many tensors.

    `rounds`: elementwise on one tensor, and only nearly invertible in float32.
    """

    to_ours: Callable[..., np.ndarray]
    to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    rounds: bool = False


class Entry(NamedTuple):
    """One parameter of ours and the tensors that it is made of.

    Attributes:
        ours: path below `params`, e.g. "lm_head/kernel"; in a block's entries, below the block.
        theirs: names; in a block's entries, below the block.
    """

    ours: str
    theirs: tuple[str, ...]
    transform: Transform


SAME = Transform(lambda x: x, lambda x: (x,))
TRANSPOSED = Transform(lambda x: x.T, lambda x: (x.T,))  # PyTorch's [out in] and our [in out]
BLOCKS_TRANSPOSED = Transform(lambda x: np.swapaxes(x, 1, 2), lambda x: (np.swapaxes(x, 1, 2),))
# [channels 1 taps] and our [taps channels]
CONV = Transform(lambda x: x[:, 0].T, lambda x: (x.T[:, None],))
SIDE_BY_SIDE = Transform(  # two linear maps of one input and our single kernel
    lambda a, b: np.concatenate([a.T, b.T], axis=1),
    lambda x: tuple(half.T for half in np.split(x, 2, axis=1)),
)


class Table(NamedTuple):
    """All entries of a kind of model.

    Attributes:
        outside: entries that stand outside the blocks.
        blocks: entries by the names of the block's mixers (`ModelConfig.layout`).
        block_prefix: what their names of block l begin with, "{l}" standing for l.
    """

    outside: tuple[Entry, ...]
    blocks: Mapping[tuple[str, ...], tuple[Entry, ...]]
    block_prefix: str


EMBEDDING, HEAD = "embedding/embedding", "lm_head/kernel"  # names of our parameters


def settle_tying(
    table: Table, config: ModelConfig, tensors: Tensors
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Whether the embedding is the vocabulary projection too, decided by the tensors that are
    there.

    A configuration may say that the two are tied, and its tensors be untied all the same:
    transformers 5.23 never ties those of an xLSTM. And tied ones are stored once, under either
    name (`safetensors.torch.save_model`), or twice.

    Returns:
        The configuration, tied only where it said so and one of the two is missing or both are
        equal to the bit; and the tensors, of tied ones the embedding alone.
    """
    tensors = dict(tensors)
    names = {entry.ours: entry.theirs[0] for entry in table.outside}
    embedding, head = names[EMBEDDING], names[HEAD]
    if not config.tie_embeddings or head not in tensors:
        return config, tensors
    if embedding in tensors and not _same_bits(tensors[embedding], tensors[head]):
        return dataclasses.replace(config, tie_embeddings=False), tensors
    tensors.setdefault(embedding, tensors[head])
    del tensors[head]
    return config, tensors


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    bits = np.dtype(f"u{one.dtype.itemsize}")
    return np.array_equal(
        np.ascontiguousarray(one).view(bits), np.ascontiguousarray(other).view(bits)
    )


def import_params(
    table: Table, config: ModelConfig, tensors: Tensors, shapes: Any, allocate: Allocate = np.empty
) -> dict:
    """Our parameter tree, float32, from their tensors.

    Args:
        shapes: our tree with anything that has a shape as leaves, e.g. `jax.eval_shape` of `init`.

    Raises:
        UserError: tensors are missing, unknown or of another shape; all of them are named.
    """
    entries = list(_entries(table, config))
    wanted = [name for _, _, names in entries for name in names]
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in set(wanted)]
    _refuse(problems)

    params: dict = {}
    for entry, path, names in entries:
        shape = _get(shapes, path).shape
        given = [tensors[name] for name in names]
        wrong = [
            f"{name} has shape {tuple(tensor.shape)} instead of {expected}"
            for name, tensor, expected in zip(
                names, given, _their_shapes(entry, shape), strict=True
            )
            if tuple(tensor.shape) != expected
        ]
        problems += wrong
        if wrong or problems:
            continue
        target = allocate(shape, np.float32)
        target[...] = entry.transform.to_ours(*(np.asarray(x, np.float32) for x in given))
        _set(params, path, target)
    _refuse(problems)
    return params


def export_params(
    table: Table, config: ModelConfig, params: Any, originals: Tensors | None = None
) -> dict[str, np.ndarray]:
    """Their tensors from our (unboxed) parameter tree: the inverse of `import_params`.

    Tied embeddings come out under both names, as their programs expect, and `settle_tying` makes
    one of them again.
    """
    return {
        tensor.name: np.ascontiguousarray(tensor.make())
        for tensor in exported_tensors(table, config, params, originals)
    }


def exported_tensors(
    table: Table, config: ModelConfig, params: Any, originals: Tensors | None = None
) -> Iterator[Tensor]:
    """The same one by one, each made when it is written.

    Args:
        originals: of `rounding_tensors`, kept by the import. What the model still has of them is
            exported to the bit: w where 1 + w is unchanged.
    """
    originals = originals or {}
    for entry, path, names in (*_entries(table, config), *_tied_head(table, config)):
        leaf = _get(params, path)
        for part, (name, shape) in enumerate(
            zip(names, _their_shapes(entry, leaf.shape), strict=True)
        ):

            def make(leaf=leaf, entry=entry, part=part, name=name) -> np.ndarray:
                ours = np.asarray(leaf)
                theirs = entry.transform.to_theirs(ours)[part]
                if name in originals and originals[name].shape == theirs.shape:
                    original = np.asarray(originals[name], np.float32)
                    theirs = np.where(entry.transform.to_ours(original) == ours, original, theirs)
                return theirs

            yield Tensor(name, shape, make)


def rounding_tensors(table: Table, config: ModelConfig) -> list[str]:
    """Names of their tensors that ours can't give back to the bit."""
    return [
        name
        for entry, _, names in _entries(table, config)
        for name in names
        if entry.transform.rounds
    ]


def _their_shapes(entry: Entry, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    stand_in = np.broadcast_to(np.float32(0), shape)  # takes no memory, whatever its shape
    return [part.shape for part in entry.transform.to_theirs(stand_in)]


class Fields(dict):
    """The fields of their configuration; one that is missing, or of another type than it must be,
    is the checkpoint's fault and named.
    """

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"the checkpoint can't be converted: its configuration has no field {name!r}"
        )

    def whole(self, *names: str) -> int:
        """A whole number that may stand under any of these names, or under several of them."""
        given = {name: self[name] for name in names if self.get(name) is not None}
        if not given and names[0] in self:
            self._refuse(names[0], "a number")
        if not given:
            return self[names[0]]  # refuses a missing field
        for name, value in given.items():
            if type(value) is not int or value < 0:
                self._refuse(name, "a whole number")
        if len(set(given.values())) > 1:
            both = " and ".join(f"{name} is {value}" for name, value in given.items())
            raise UserError(f"the checkpoint can't be converted: {both}; they must be equal")
        return next(iter(given.values()))

    def decimal(self, name: str) -> float:
        """A finite number; also as text, which is what YAML takes 1e-6 for."""
        value = self[name]
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        return number if math.isfinite(number) else self._refuse(name, "a number")

    def yes(self, name: str) -> bool:
        """A truth value."""
        value = self[name]
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def section(self, name: str) -> "Fields":
        """Fields inside."""
        value = self[name]
        return Fields(value) if isinstance(value, Mapping) else self._refuse(name, "fields")

    def _refuse(self, name: str, wanted: str) -> Any:
        raise UserError(
            f"the checkpoint can't be converted: {name} of its configuration is "
            f"{self.get(name)!r}; it must be {wanted}"
        )


def checked(mixers: Mapping[str, Any], **settings: Any) -> ModelConfig:
    """The configuration with these settings, those of mixers by their names, if a model can be made
    of it; raises `UserError` where it can't.
    """
    try:
        config = read_model({**settings, **mixers})
        check_model(config)
    except UserError as error:
        raise UserError(f"the checkpoint can't be converted: {error}") from None
    return config


# What most public formats lack: settings of a model that must keep their defaults. A format that
# has one of them says so.
PLAIN = {
    "embedding_norm": False,
    "positions": "none",
    "norm_bias": False,
    "residual": True,
    "final_norm": True,
}


def refuse_other_blocks(config: ModelConfig, blocks: set[tuple[str, ...]]) -> None:
    """Raises `UserError` where a model has blocks that a format lacks."""
    others = {"+".join(block) for block in set(config.layout) - blocks}
    known = " or ".join("+".join(block) for block in sorted(blocks))
    _refuse([f"the model has blocks {name!r}; the format has {known}" for name in sorted(others)])


def refuse_unless(source: Mapping[str, Any], required: Mapping[str, Any], what: str) -> None:
    """Raises `UserError` naming the fields of a configuration whose values the other side has no
    counterpart for.
    """
    _refuse(
        [
            f"{what} has {name} = {source[name]!r}; only {value!r} can be represented"
            for name, value in required.items()
            if name in source and source[name] != value
        ]
    )


def _entries(
    table: Table, config: ModelConfig
) -> Iterator[tuple[Entry, tuple[str, ...], list[str]]]:
    """(entry, our path, their full names) of every parameter, in the blocks' order."""
    for entry in table.outside:
        if not (config.tie_embeddings and entry.ours == HEAD):
            yield entry, tuple(entry.ours.split("/")), list(entry.theirs)
    for number, mixers in enumerate(config.layout):
        if mixers not in table.blocks:
            _refuse([f"the format has no block {'+'.join(mixers)!r}"])
        prefix = table.block_prefix.format(l=number)
        for entry in table.blocks[mixers]:
            path = ("backbone", block_name(number), *entry.ours.split("/"))
            yield entry, path, [prefix + name for name in entry.theirs]


def _tied_head(
    table: Table, config: ModelConfig
) -> Iterator[tuple[Entry, tuple[str, ...], list[str]]]:
    """The vocabulary projection of a model that has none of its own: the embedding, which in their
    [out in] is the same array.
    """
    for entry in table.outside:
        if config.tie_embeddings and entry.ours == HEAD:
            path = tuple(EMBEDDING.split("/"))
            yield Entry(EMBEDDING, entry.theirs, SAME), path, list(entry.theirs)


def _refuse(problems: list[str]) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (
            f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        )
        raise UserError(f"the checkpoint can't be converted: {shown}")


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _set(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
