"""Pathfinder's images as the Long Range Arena's release has them, of 32 x 32 pixels.

    FOLDER/curv_contour_length_14/metadata/<n>.npy    text: directory, file, number, label, ...
    FOLDER/curv_contour_length_14/imgs/<n>/sample_<m>.png

The other two folders of the release are easier and not part of the task. Files that are no images
are left out and counted: the release has an empty one.
"""

import functools
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from xlstm_jax.errors import UserError
from xlstm_jax.progress import doing
from xlstm_jax.tasks.snakes import SIZE
from xlstm_jax.typing import Int

HARD = "curv_contour_length_14"
SPLIT_SEED = 42  # as S5 has, whose own order is PyTorch's
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
KEY = "config key task.pathfinder.path"


class Images(NamedTuple):
    """Images and their classes."""

    pixels: Int[np.ndarray, "N P"]  # uint8, row by row
    labels: Int[np.ndarray, " N"]

    @property
    def fingerprint(self) -> str:
        """Another one for other images."""
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()


class Release(NamedTuple):
    """The images of each split, and the files that are none."""

    splits: dict[str, Images]
    broken: tuple[str, ...]


@functools.lru_cache(maxsize=1)  # stages of a run and runs of a grid read the same 200,000 files
def read(path: str) -> Release:
    """All images of the release, shuffled and split.

    Raises:
        UserError: it is another folder, a list is damaged, no image can be read, or one has
            another size.
    """
    folder = pathlib.Path(path).expanduser() / HARD
    lists = sorted(folder.glob("metadata/*.npy"), key=lambda file: (len(file.name), file.name))
    if not lists:
        raise UserError(
            f"{KEY} is {path!r}, which has no {HARD}/metadata/*.npy; give the folder pathfinder32 "
            "of the Long Range Arena's release (lra_release/lra_release/pathfinder32)"
        )
    pixels, labels, broken = [], [], []
    with doing(f"reading the images of {path}"):
        for file in lists:
            for place, label in _listed(file):
                image = _pixels(folder / place)
                if image is None:
                    broken.append(place)
                    continue
                pixels.append(image)
                labels.append(label)
    if not pixels:
        raise UserError(f"{KEY} is {path!r}, of which no image can be read, {broken[0]} for one")
    found = Images(np.stack(pixels), np.array(labels, np.int32))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    ends = np.rint(np.cumsum(list(SHARES.values())) * len(labels)).astype(int)
    parts = zip(SHARES, np.split(order, ends[:-1]), strict=True)
    splits = {name: Images(found.pixels[part], found.labels[part]) for name, part in parts}
    return Release(splits, tuple(broken))


def _listed(file: pathlib.Path) -> list[tuple[str, int]]:
    """(path below the folder, label) of the images of a list."""
    try:
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
        return [(f"{line[0]}/{line[1]}", {"0": 0, "1": 1}[line[3]]) for line in lines]
    except (ValueError, IndexError, KeyError):
        raise UserError(
            f"{str(file)!r} is damaged, or no list of Pathfinder's: a line has a directory, a "
            "file, a number and the label 0 or 1"
        ) from None


def _pixels(file: pathlib.Path) -> Int[np.ndarray, " P"] | None:
    """An image's grey values; None where the file is none."""
    try:
        with Image.open(file) as image:
            grey = np.asarray(image.convert("L"), np.uint8)
    except (OSError, SyntaxError, ValueError):  # missing, empty, cut off, another format
        return None
    if grey.shape != (SIZE, SIZE):
        raise UserError(
            f"{str(file)!r} has {grey.shape[1]} x {grey.shape[0]} pixels; those of the task have "
            f"{SIZE} x {SIZE}, in the release's folder pathfinder{SIZE}"
        )
    return grey.reshape(-1)
