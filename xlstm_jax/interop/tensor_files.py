"""The safetensors format, read by memory-mapping and written one tensor at a time; nothing in it is
ever executed.

A file is eight bytes (the header's length, little-endian), a JSON header {name: {dtype, shape,
data_offsets}} and the tensors' bytes. Several files have an index, `model.safetensors.index.json`,
with the file of every tensor.
"""

import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from xlstm_jax.errors import UserError

FILE = "model.safetensors"
INDEX = FILE + ".index.json"
LONGEST_HEADER = 100_000_000  # bytes, as in the reference implementation
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Tensor(NamedTuple):
    """A tensor that is made when it is written."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, as read-only views of its memory-mapped files.

    Raises:
        UserError: there are no such files, one is damaged, or the index names a file outside the
            folder or a tensor that is not there.
    """
    if (folder / INDEX).is_file():
        where = _weight_map(folder / INDEX)
        files = sorted(set(where.values()))
    elif (folder / FILE).is_file():
        where, files = {}, [FILE]
    elif numbered := sorted(folder.glob("model_*.safetensors")):  # PyPI `xlstm`
        where, files = {}, [path.name for path in numbered]
    else:
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        hint = (
            f"; {pickles[0]!r} is a pickle, which could run any code: convert it to safetensors "
            f"where you trust it"
            if pickles
            else ""
        )
        raise UserError(f"folder {str(folder)!r} holds no {FILE} and no {INDEX}{hint}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(
                f"{folder / INDEX} names the file {file!r}, which is missing; download it again"
            )
        content = read_file(folder / file)
        if doubled := tensors.keys() & content.keys():
            raise UserError(f"tensor {min(doubled)!r} is in two files of {str(folder)!r}")
        tensors |= content
    missing = [name for name in where if name not in tensors]
    if missing:
        raise UserError(
            f"{folder / INDEX} names {len(missing)} tensors that no file has, {missing[0]!r} "
            f"first; download it again"
        )
    return tensors


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    """Tensor -> name of its file."""
    try:
        where = json.loads(path.read_text())["weight_map"]
        files = set(where.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no index of tensors: {type(error).__name__}: {error}") from None
    for file in files:
        if (
            not isinstance(file, str)
            or file != pathlib.PurePosixPath(file).name
            or "\\" in file
            or file in ("", ".", "..")
        ):
            raise UserError(
                f"{path} names the file {file!r}, which is not in its own folder; such an index is "
                f"refused"
            )
    return where


def read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of one file, as views of it; raises `UserError` where the file is damaged."""

    def refuse(problem: str) -> UserError:
        return UserError(f"{path} is no good safetensors file: {problem}; download it again")

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise refuse("its header's length makes no sense")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: (
                    DTYPES[entry["dtype"]],
                    tuple(map(_count, entry["shape"])),
                    *map(_count, entry["data_offsets"]),
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise refuse(f"its header can't be read ({type(error).__name__}: {error})") from None
    content = (
        np.memmap(path, np.uint8, mode="r", offset=8 + length)
        if size > 8 + length
        else np.zeros(0, np.uint8)
    )
    tensors, reached = {}, 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda entry: entry[1][2:]):
        if (
            begin != reached
            or end > len(content)
            or end - begin != math.prod(shape) * np.dtype(dtype).itemsize
        ):
            raise refuse(
                f"the bytes {begin} to {end} of tensor {name!r} do not fit its shape, its "
                f"neighbours or the file"
            )
        tensors[name] = np.ndarray(
            shape, dtype, buffer=content[begin:end].data if end > begin else b""
        )
        reached = end
    if reached != len(content):
        raise refuse(f"{len(content) - reached} bytes belong to no tensor")
    return tensors


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def write_folder(
    folder: pathlib.Path, tensors: Iterable[Tensor], dtype: Any, bytes_per_file: int
) -> int:
    """Writes tensors in their order into as few files as `bytes_per_file` allows, with an index if
    there are several.

    One tensor at a time is in memory. Returns the number of bytes of all tensors.
    """
    dtype = np.dtype(dtype)
    shards: list[list[Tensor]] = [[]]
    room = bytes_per_file
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = bytes_per_file
        shards[-1].append(tensor)
        room -= size
    names = (
        [FILE]
        if len(shards) == 1
        else [f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)]
    )
    total = sum(
        write_file(folder / name, shard, dtype) for name, shard in zip(names, shards, strict=True)
    )
    if len(shards) > 1:
        where = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def write_file(path: pathlib.Path, tensors: Sequence[Tensor], dtype: Any) -> int:
    """Writes one file, tensor by tensor; returns the number of their bytes."""
    dtype = np.dtype(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    offset = 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {
            "dtype": NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            array = np.asarray(tensor.make(), dtype, order="C")
            if array.shape != tensor.shape:
                raise ValueError(
                    f"{tensor.name} was announced with the shape {tensor.shape} and has "
                    f"{array.shape}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
    unfinished.replace(path)
    return offset
