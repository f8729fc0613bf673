"""CIFAR-10 pixel by pixel: G-Image of the Long Range Arena (2011.04006, section 2.2.4), and
RGB-Image, the coloured form of LRU (2303.06349). An image of 32 x 32 is a sequence of 1024 tokens,
row by row.

The data are the archive's own files, which lie on the disk: the binary or the Python version,
unpacked. The normalisations are those of S4 and S5.
"""

import dataclasses
import functools
import hashlib
import pathlib
import pickle
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models.classifier import POOLINGS
from xlstm_jax.settings import setting
from xlstm_jax.tasks.classification import Classification, Plan
from xlstm_jax.typing import Float, Int

SIZE, CHANNELS, CLASSES, GREYS = 32, 3, 10, 256
PIXELS = SIZE**2
RECORD = 1 + CHANNELS * PIXELS  # bytes of the binary version: label, red, green, blue
TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
SPLIT_SEED, HELD_OUT = 42, 10  # every tenth of the shuffled training images is for validation
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R 601)
GREY_MEAN, GREY_DEVIATION = 122.6 / 255, 61.0 / 255
RGB_MEANS = np.array([0.4914, 0.4822, 0.4465])
RGB_DEVIATIONS = np.array([0.247, 0.243, 0.261])


class Images(NamedTuple):
    """Images and their classes."""

    pixels: Int[np.ndarray, "N P C"]  # uint8, row by row, red, green, blue
    labels: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True)
class CifarConfig:
    """Settings of CIFAR-10's images."""

    path: str = setting(
        "data/cifar-10-batches-bin",
        "the unpacked archive, binary version (data_batch_1.bin, ...) or Python version",
        place=True,
    )
    colours: str = setting(
        "grey", 'one value for each pixel, or "rgb": three', choices=("grey", "rgb")
    )
    input: str = setting(
        "values",
        'normalised values (as for S4 and S5), or "tokens", one for each grey (as in the Arena)',
        choices=("values", "tokens"),
    )
    pooling: str = setting(
        "mean", 'of all pixels, or the "last" one: what the class is told from', choices=POOLINGS
    )


class Cifar(Classification):
    """Tells what an image shows."""

    settings: CifarConfig

    @property
    def plan(self) -> Plan:
        settings = self.settings
        if settings.input == "tokens":
            return Plan(CLASSES, None, settings.pooling)
        return Plan(CLASSES, CHANNELS if settings.colours == "rgb" else 1, settings.pooling)

    @functools.cached_property
    def images(self) -> dict[str, Images]:
        """The images of each split."""
        folder = pathlib.Path(self.settings.path).expanduser()
        training = [read(folder, name) for name in TRAINING]
        pixels, labels = (np.concatenate(part) for part in zip(*training, strict=True))
        order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        held_out = np.arange(len(labels)) % HELD_OUT == 0
        splits = {"train": order[~held_out], "validation": order[held_out]}
        found = {name: Images(pixels[index], labels[index]) for name, index in splits.items()}
        return found | {"test": read(folder, TEST)}

    def count(self, split: str) -> int:
        return len(self.images[split].labels)

    def sample(self, split: str, seed: int, number: int) -> tuple[np.ndarray, int]:
        images, settings = self.images[split], self.settings
        number %= len(images.labels)  # what fills up the last batch does not count
        pixels, label = images.pixels[number], int(images.labels[number])
        if settings.input == "tokens":
            return np.rint(pixels @ GREY_WEIGHTS).astype(np.int32), label
        return normalised(pixels, settings.colours), label

    def check(self) -> None:
        settings, vocab_size = self.settings, self.model_config.vocab_size
        if settings.input == "tokens" and settings.colours == "rgb":
            raise UserError(
                "config key task.cifar.input is 'tokens', which are grey values, but "
                "task.cifar.colours is 'rgb'; use 'values'"
            )
        if settings.input == "tokens" and vocab_size < GREYS:
            raise UserError(
                f"config key model.vocab_size is {vocab_size}; there are {GREYS} grey values"
            )
        if self.data.context_length != PIXELS:
            raise UserError(
                f"config key data.context_length is {self.data.context_length}; the images of the "
                f"task have {PIXELS} pixels"
            )
        _ = self.images

    def description(self) -> list[str]:
        counts = {split: f"{self.count(split):,}" for split in self.images}
        return [f"CIFAR-10: {', '.join(f'{n} images of {s}' for s, n in counts.items())}"]

    def record(self) -> dict[str, dict[str, Any]]:
        return {
            split: {
                "images": len(images.labels),
                "fingerprint": hashlib.sha256(
                    images.pixels.tobytes() + images.labels.tobytes()
                ).hexdigest(),
            }
            for split, images in self.images.items()
        }


def normalised(pixels: Int[np.ndarray, "P C"], colours: str) -> Float[np.ndarray, "P C"]:
    """The values that the model sees: of one channel for "grey", of three for "rgb"."""
    if colours == "rgb":
        return (pixels / 255 - RGB_MEANS) / RGB_DEVIATIONS
    return ((pixels @ GREY_WEIGHTS / 255 - GREY_MEAN) / GREY_DEVIATION)[:, None]


def read(folder: pathlib.Path, name: str) -> Images:
    """One of the archive's files, in the version that is there.

    Raises:
        UserError: it is missing, or is not what the archive has.
    """
    binary, pickled = folder / f"{name}.bin", folder / name
    if binary.is_file():
        return _binary(binary)
    if pickled.is_file():
        return _pickled(pickled)
    raise UserError(
        f"config key task.cifar.path is {str(folder)!r}, which has neither {binary.name} nor "
        f"{pickled.name}; unpack CIFAR-10's archive and give its folder"
    )


def _binary(path: pathlib.Path) -> Images:
    content = np.fromfile(path, np.uint8)
    if not len(content) or len(content) % RECORD:
        raise UserError(
            f"{str(path)!r} has {len(content):,} bytes, no multiple of {RECORD:,}; it is damaged, "
            "or no file of CIFAR-10's binary version"
        )
    records = content.reshape(-1, RECORD)
    return _checked(path, records[:, 1:], records[:, 0])


def _pickled(path: pathlib.Path) -> Images:
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file, encoding="bytes").load()
        values, labels = np.asarray(found[b"data"]), np.asarray(found[b"labels"])
        assert values.dtype == np.uint8 and values.shape == (len(labels), RECORD - 1)
    except (OSError, ValueError, EOFError, KeyError, TypeError, AssertionError, AttributeError,
            ImportError, IndexError, pickle.UnpicklingError):  # fmt: skip
        raise UserError(
            f"{str(path)!r} is damaged, or no file of CIFAR-10's Python version"
        ) from None
    return _checked(path, values, labels)


class _Unpickler(pickle.Unpickler):
    """Reads arrays and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = {"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"}
        is_array = module.split(".")[0] == "numpy" and name in arrays
        if is_array or (module, name) == ("_codecs", "encode"):  # of bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _checked(path: pathlib.Path, values: np.ndarray, labels: np.ndarray) -> Images:
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise UserError(
            f"{str(path)!r} has the label {labels.max()}, but CIFAR-10 has {CLASSES} classes; it "
            "is another data set's (CIFAR-100?) or damaged"
        )
    pixels = values.reshape(-1, CHANNELS, PIXELS).transpose(0, 2, 1)
    return Images(np.ascontiguousarray(pixels), labels.astype(np.int32))
