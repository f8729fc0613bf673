"""Which files a source has for a split, in which order: a local file or folder, or a data set on
the Hugging Face hub.
"""

import dataclasses
import fnmatch
import pathlib
import re

from xlstm_jax.data import hub
from xlstm_jax.data.documents import SUFFIXES
from xlstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known about a data set of the hub.

    Attributes:
        field: of a record that holds its text.
        files: glob of the files to choose from.
        join: the records of a file are one text.
        holdout_every: without a split for validation, every so many files make it.
    """

    field: str = "text"
    files: str = "*"
    join: bool = False
    holdout_every: int | None = None


LAYOUTS = {
    # train/chunk1/example_train_0.jsonl.zst, validation/chunk1/..., test/chunk1/...
    "cerebras/SlimPajama-627B": Layout(),
    # data/train-00000-of-00048-HASH.parquet, data/validation-..., data/test-...
    "DKYoon/SlimPajama-6B": Layout(),
    # train-00000-of-00002.parquet; records are lines
    "Salesforce/wikitext": Layout(files="wikitext-103-raw-v1/*", join=True),
    # global-shard_01_of_10/local-shard_0_of_10/shard_00000000_...
    "mlfoundations/dclm-baseline-1.0": Layout(holdout_every=1000),
}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "holdout"),
    "test": ("test",),
}


@dataclasses.dataclass(frozen=True)
class InputFile:
    """One file of a source.

    Attributes:
        name: relative to the source, with forward slashes.
        sha256: where the hub tells it.
    """

    name: str
    size: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of files.

    Attributes:
        name: as given, for the hub with the revision that it had: "owner/name@commit".
        folder: of the local files; None on the hub.
    """

    name: str
    folder: pathlib.Path | None
    files: tuple[InputFile, ...]


def open_source(name: str) -> Source:
    """All files of a local path or of a data set "owner/name" or "owner/name@revision" on the hub,
    that can be read.

    Raises:
        UserError: there is no such thing, or nothing in it that can be read.
    """
    path = pathlib.Path(name)
    if path.is_file():
        source = Source(name, path.parent, (InputFile(path.name, path.stat().st_size),))
    elif path.is_dir():
        found = [
            (file, file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()
        ]
        files = tuple(
            InputFile(relative, file.stat().st_size)
            for file, relative in found
            if not f"/{relative}".count("/.")
        )
        source = Source(name, path, files)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        resolved, listed = hub.list_files(name)
        source = Source(resolved, None, tuple(InputFile(*entry) for entry in listed))
    else:
        raise UserError(
            f"--source {name!r} is no file, no folder and no data set of the hub (owner/name)"
        )
    files = tuple(
        sorted(
            (file for file in source.files if file.name.lower().endswith(SUFFIXES)),
            key=lambda file: _natural(file.name),
        )
    )
    if not files:
        raise UserError(
            f"--source {name!r} has no file that can be read; these can: {', '.join(SUFFIXES)}"
        )
    return dataclasses.replace(source, files=files)


def layout_of(name: str) -> Layout:
    """What is known about a source by its name."""
    return LAYOUTS.get(name.partition("@")[0], Layout())


def select(
    source: Source, split: str, pattern: str, holdout_every: int | None
) -> tuple[InputFile, ...]:
    """The files of a split.

    A file belongs to the split that its path names ("train/...",
    "data/train-00000-of-00048.parquet"). Where no path names one, every `holdout_every`-th file is
    for validation and the others for training; without `holdout_every`, all are for training.

    Raises:
        UserError: there are none.
    """
    chosen = [file for file in source.files if fnmatch.fnmatchcase(file.name, pattern)]
    if not chosen:
        raise UserError(
            f"--files={pattern} fits none of the {len(source.files):,} files of {source.name!r}, "
            f"e.g. {source.files[0].name!r}"
        )
    named = {file: _split_of(file.name) for file in chosen}
    if holdout_every is None and any(named.values()) and len(chosen) > 1:
        files = [file for file in chosen if named[file] == split]
        remedy = f"its files name {', '.join(sorted(set(filter(None, named.values()))))}; give one of these, or choose with --files"
    elif holdout_every is not None:
        files = [
            file
            for k, file in enumerate(chosen, 1)
            if (k % holdout_every == 0) == (split == "validation")
        ]
        remedy = f"every {holdout_every}th of {len(chosen)} files is one; lower --holdout-every"
    else:
        files = chosen if split == "train" or len(chosen) == 1 else []
        remedy = "no file names a split; give --holdout-every=N, or --split=train and another source for validation"
    if not files:
        raise UserError(f"source {source.name!r} has no files for the split {split!r}: {remedy}")
    return tuple(files)


def _split_of(name: str) -> str | None:
    """The split that a path names: by a folder, or by the beginning of the file's name."""
    *folders, file = name.lower().split("/")
    words = {*folders, re.split(r"[-_.]", file)[0]}
    return next((split for split, names in SPLITS.items() if words.intersection(names)), None)


def _natural(name: str) -> list[tuple[bool, int | str]]:
    """A key that sorts example_2 before example_10."""
    return [
        (part.isdigit(), int(part) if part.isdigit() else part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
