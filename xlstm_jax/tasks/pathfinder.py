"""Pathfinder of the Long Range Arena (2011.04006, section 2.2.5): are two points the ends of one
dashed curve? An image of 32 x 32 pixels is read row by row, 1024 tokens. The images are made by
`snakes`, the classes equally likely, or are the release's own (`pathfinder_files`).
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models.classifier import POOLINGS
from xlstm_jax.progress import counted
from xlstm_jax.settings import refuse_ignored, setting
from xlstm_jax.tasks import pathfinder_files, snakes
from xlstm_jax.tasks.classification import Classification, Plan

SPLITS = {"train": 0, "validation": 1, "test": 2}
PIXELS = snakes.SIZE**2
GREYS = 256
KEPT = 200_000  # images that are not made again in the next epoch; 1 kB each


@dataclasses.dataclass(frozen=True)
class PathfinderConfig:
    """Settings of the images of dashed curves."""

    path: str | None = setting(
        None,
        "the release's folder pathfinder32, with curv_contour_length_14; unset: images are made",
        place=True,
    )
    input: str = setting(
        "values",
        'grey values from -1 to 1 (as for S4 and S5), or "tokens", one for each grey (as in the '
        "Arena)",
        choices=("values", "tokens"),
    )
    single_dashes: bool = setting(False, "fill the rest of the images with dashes")
    pooling: str = setting(
        "mean", 'of all pixels, or the "last" one: what the class is told from', choices=POOLINGS
    )
    train_samples: int = setting(
        160_000, "that training reads again and again; of a path at most so many", at_least=1
    )
    held_out_samples: int = setting(20_000, "of validation", at_least=1)
    test_samples: int = setting(20_000, "of the test, which nothing is chosen by", at_least=1)


@functools.lru_cache(maxsize=KEPT)
def sample(split: str, seed: int, number: int, single_dashes: bool) -> tuple[np.ndarray, int]:
    """(pixels row by row, 0 to 255; 1 where the points are the ends of one curve)."""
    rng = np.random.default_rng([SPLITS[split], seed, number])
    image, label = snakes.image(rng, single_dashes)
    return image.reshape(-1), label


class Pathfinder(Classification):
    """Tells whether two points are the ends of one curve."""

    settings: PathfinderConfig

    @property
    def plan(self) -> Plan:
        settings = self.settings
        return Plan(2, 1 if settings.input == "values" else None, settings.pooling)

    @functools.cached_property
    def release(self) -> pathfinder_files.Release | None:
        """The release's images; None where they are made."""
        return None if self.settings.path is None else pathfinder_files.read(self.settings.path)

    def count(self, split: str) -> int:
        settings = self.settings
        held_out = {"validation": settings.held_out_samples, "test": settings.test_samples}
        wanted = {"train": settings.train_samples, **held_out}[split]
        release = self.release
        return wanted if release is None else min(wanted, len(release.splits[split].labels))

    def sample(self, split: str, seed: int, number: int) -> tuple[np.ndarray, int]:
        if self.release is None:
            pixels, label = sample(split, seed, number, self.settings.single_dashes)
        else:
            images = self.release.splits[split]
            number %= self.count(split)  # what fills up the last batch does not count
            pixels, label = images.pixels[number], int(images.labels[number])
        if self.settings.input == "tokens":
            return pixels, label
        return pixels[:, None] / 127.5 - 1, label

    def check(self) -> None:
        if self.data.context_length != PIXELS:
            raise UserError(
                f"config key data.context_length is {self.data.context_length}; the images of the "
                f"task have {PIXELS} pixels"
            )
        vocab_size = self.model_config.vocab_size
        if self.settings.input == "tokens" and vocab_size < GREYS:
            raise UserError(
                f"config key model.vocab_size is {vocab_size}; there are {GREYS} grey values"
            )
        if self.settings.path is not None:
            why = "the images of task.pathfinder.path are what they are"
            refuse_ignored(self.settings, "task.pathfinder", ("single_dashes",), why)
        if (release := self.release) and min(len(s.labels) for s in release.splits.values()) == 0:
            raise UserError(
                f"{pathfinder_files.KEY} is {self.settings.path!r}, which has too few images for "
                "training, validation and test; give the whole folder"
            )

    def description(self) -> list[str]:
        settings = self.settings
        if self.release is not None:
            counts = ", ".join(f"{self.count(s):,} of {s}" for s in self.release.splits)
            lines = [f"dashed curves, images of the release: {counts}"]
            if broken := self.release.broken:
                lines.append(
                    f"left out as no images: {counted(len(broken), 'file')}, {broken[0]} for one"
                )
            return lines
        return [
            f"dashed curves in images of {snakes.SIZE} x {snakes.SIZE} pixels: trained on "
            f"{settings.train_samples:,}, evaluated on {settings.held_out_samples:,}"
        ]

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        if self.release is not None:
            return {
                split: {"images": self.count(split), "fingerprint": images.fingerprint}
                for split, images in self.release.splits.items()
            }
        what = f"single dashes {settings.single_dashes}, seed {self.data.seed}"
        counts = {"train": settings.train_samples, "validation": settings.held_out_samples}
        return {name: {"fingerprint": f"{what}, {count}"} for name, count in counts.items()}
