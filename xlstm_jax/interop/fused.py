"""Tensors that others store as one: cut into their parts, and joined when they are written."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.interop.tensor_files import Tensor

# Name of a fused tensor -> (name, size along the cut axis) of each of its parts, in their order.
Groups = Mapping[str, Sequence[tuple[str, int]]]


def split(tensors: Mapping[str, np.ndarray], groups: Groups, axis: int) -> dict[str, np.ndarray]:
    """The same tensors with the fused ones cut along an axis: views of them.

    Raises:
        UserError: a fused tensor is missing or has another size; the first ones are named.
    """
    result, problems = dict(tensors), []
    for fused, parts in groups.items():
        whole = result.pop(fused, None)
        sizes = [size for _, size in parts]
        if whole is None:
            problems.append(f"{fused} is missing")
        elif whole.ndim == 0 or whole.shape[axis] != sum(sizes):
            what = "rows" if axis == 0 else "columns"
            problems.append(
                f"{fused} has shape {tuple(whole.shape)} instead of {sum(sizes)} {what}"
            )
        else:
            pieces = np.split(whole, np.cumsum(sizes)[:-1], axis=axis)
            result |= {name: piece for (name, _), piece in zip(parts, pieces, strict=True)}
    if problems:
        raise UserError(f"the checkpoint can't be converted: {'; '.join(problems[:8])}")
    return result


def join(
    tensors: Iterable[Tensor], groups: Mapping[str, Sequence[str]], axis: int
) -> Iterator[Tensor]:
    """The tensors with those of a group joined along an axis, each when it is written.

    Args:
        groups: the end of a fused tensor's name -> the ends of its parts' names, in their order;
            what stands before an end, "model.layers.3." for example, is the same for all.
    """
    whole_of = {part: fused for fused, parts in groups.items() for part in parts}
    waiting: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        part = next((end for end in whole_of if tensor.name.endswith(end)), None)
        if part is None:
            yield tensor
            continue
        ends = groups[whole_of[part]]
        name = tensor.name.removesuffix(part) + whole_of[part]
        found = waiting.setdefault(name, {})
        found[part] = tensor
        if len(found) == len(ends):
            pieces = [found[end] for end in ends]
            shape = list(pieces[0].shape)
            shape[axis] = sum(piece.shape[axis] for piece in pieces)
            yield Tensor(
                name,
                tuple(shape),
                lambda pieces=pieces: np.concatenate([p.make() for p in pieces], axis=axis),
            )
