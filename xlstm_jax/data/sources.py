"""Which files a source has for a split, in which order: a local file or folder, or a data set on
the Hugging Face hub.
"""

import dataclasses
import fnmatch
import os
import pathlib
import re
from collections.abc import Iterator

from xlstm_jax.data import hub
from xlstm_jax.data.documents import SUFFIXES
from xlstm_jax.errors import UserError
from xlstm_jax.progress import counted


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
        changed: of a local file, when its content was last written, in ns.
    """

    name: str
    size: int
    sha256: str | None = None
    changed: int | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of files.

    Attributes:
        name: as given, for the hub with the revision that it had: "owner/name@commit".
        folder: of the local files; None on the hub.
        other: names of the files that are of no kind that can be read.
    """

    name: str
    folder: pathlib.Path | None
    files: tuple[InputFile, ...]
    other: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it is a single file, given as such."""
        return self.folder is not None and pathlib.Path(self.name).is_file()


def open_source(name: str, output: pathlib.Path | None = None) -> Source:
    """All files of a local path or of a data set "owner/name" or "owner/name@revision" on the hub,
    that can be read.

    Hidden files and folders are passed over, links are followed, and what lies in `output` is no
    part of the source.

    Raises:
        UserError: there is no such thing, or nothing in it that can be read.
    """
    path = pathlib.Path(name)
    if path.is_file():
        source = Source(name, path.parent, (_input_file(path, path.name),))
    elif path.is_dir():
        found = sorted(file for file in files_below(path, output))
        readable = list(filter(_is_readable, found))
        files = tuple(_input_file(path / file, file) for file in readable)
        source = Source(name, path, files, tuple(sorted({*found} - {*readable})))
    elif re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name) and not _is_readable(name):
        print(f"listing the files of {name} ...", flush=True)
        resolved, listed = hub.list_files(name)
        source = Source(resolved, None, tuple(InputFile(*entry) for entry in listed))
        other = tuple(file.name for file in source.files if not _can_be_read(file))
        source = dataclasses.replace(source, other=other)
    else:
        raise UserError(
            f"--source {name!r} is no file, no folder and no data set of the hub (owner/name)"
        )
    files = tuple(sorted(filter(_can_be_read, source.files), key=lambda file: _natural(file.name)))
    if not files:
        raise UserError(
            f"--source {name!r} has no file that can be read; these can: {', '.join(SUFFIXES)}"
        )
    return dataclasses.replace(source, files=files)


def files_below(root: pathlib.Path, output: pathlib.Path | None = None) -> Iterator[str]:
    """Names of all files in a folder and below it, relative to it, with forward slashes.

    Links are followed; a folder that can be reached in two ways is taken once, by its own name
    before a link's. Names that begin with a dot and the folder `output` are left out.

    Raises:
        UserError: a folder can't be read, or a link leads nowhere.
    """
    seen = {os.path.realpath(output)} if output else set()
    links: list[pathlib.Path] = []

    def walk(folder: pathlib.Path) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_file():
                    yield path.relative_to(root).as_posix()
                elif entry.is_dir():
                    if entry.is_symlink():
                        links.append(path)
                    else:
                        yield from walk(path)
                elif entry.is_symlink():
                    raise UserError(
                        f"{str(path)!r} is a link to {os.readlink(path)!r}, which does not exist; "
                        f"mend or remove it"
                    )
        except OSError as error:
            raise UserError(
                f"{error.filename or str(folder)!r} can't be read: {error.strerror}"
            ) from None

    yield from walk(root)
    while links:
        yield from walk(links.pop(0))


def layout_of(name: str) -> Layout:
    """What is known about a source by its name."""
    return LAYOUTS.get(name.partition("@")[0], Layout())


def select(
    source: Source, split: str, pattern: str, holdout_every: int | None
) -> tuple[InputFile, ...]:
    """The files of a split.

    A file belongs to the split that its path names ("train/...",
    "data/train-00000-of-00048.parquet"). Where none is named for validation, every
    `holdout_every`-th of the files for training is for validation. Where no path names a split,
    all files are for training. A single file that was given as such is for every split.

    Raises:
        UserError: there are none, or `holdout_every` is given and validation files are there.
    """
    chosen = [file for file in source.files if fnmatch.fnmatchcase(file.name, pattern)]
    if not chosen:
        raise UserError(
            f"--files={pattern} fits none of the {counted(len(source.files), 'file')} of "
            f"{source.name!r}, e.g. {source.files[0].name!r}"
        )
    if source.is_file:
        if holdout_every is not None:
            raise UserError(
                f"--holdout-every={holdout_every} deals out files, but --source {source.name!r} is "
                f"one file; give a folder of several, or --split and another file for the other"
            )
        return tuple(chosen)
    named = {file: split_of(file.name) for file in chosen}
    names = set(named.values())
    # What training gets: the files that name it, or all files where none names another split.
    pool = [file for file in chosen if named[file] == "train"]
    if not pool and len(names) == 1 and "validation" not in names:
        pool = chosen
    if "validation" in names:
        if holdout_every is not None:
            raise UserError(
                f"--holdout-every={holdout_every} would mix the validation files that source "
                f"{source.name!r} has into the training files; leave it out, or choose files with "
                f"--files"
            )
        files = pool if split == "train" else [f for f in chosen if named[f] == "validation"]
    elif holdout_every is not None:
        held_out = split == "validation"
        files = [file for k, file in enumerate(pool, 1) if (k % holdout_every == 0) == held_out]
    else:
        files = pool if split == "train" else []
    if not files:
        raise UserError(
            f"source {source.name!r} has no files for the split {split!r}: "
            f"{_remedy(names, len(pool), holdout_every)}"
        )
    return tuple(files)


def _remedy(names: set[str | None], files: int, holdout_every: int | None) -> str:
    told = ", ".join(sorted(filter(None, names)))
    if holdout_every is not None and files:
        return f"every {holdout_every}th of {counted(files, 'file')} is one; lower --holdout-every"
    what = f"its files name {told}" if told else "no file names a split"
    if not files:
        return f"{what}; choose files with --files, or give their folder as --source"
    others = "--split=train, and another source for validation"
    if files == 1:
        return f"{what}, and of one file none can be held out; give {others}"
    return f"{what}; give --holdout-every=N to hold out every N-th of {files:,} files, or {others}"


def left_out(source: Source, pattern: str, taken: set[str]) -> str | None:
    """What of a source is in no split, in one sentence; None: everything is."""
    chosen = [file.name for file in source.files if fnmatch.fnmatchcase(file.name, pattern)]
    rest = [name for name in chosen if name not in taken and split_of(name) in (None, "test")]
    groups = {
        "for testing": [name for name in rest if split_of(name) == "test"],
        "whose path names no split": [name for name in rest if split_of(name) is None],
        "of no kind that can be read": list(source.other),
    }
    told = [
        f"{len(names):,} {'file' if len(names) == 1 else 'files'} {why} ({_some(names)})"
        for why, names in groups.items()
        if names
    ]
    return f"left out of {source.name}: {'; '.join(told)}" if told else None


def split_of(name: str) -> str | None:
    """The split that a path names: by a folder, or by the beginning of the file's name."""
    *folders, file = name.lower().split("/")
    words = {*folders, re.split(r"[-_.]", file)[0]}
    return next((split for split, names in SPLITS.items() if words.intersection(names)), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _can_be_read(file: InputFile) -> bool:
    return _is_readable(file.name)


def _is_readable(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _input_file(path: pathlib.Path, name: str) -> InputFile:
    status = path.stat()
    return InputFile(name, status.st_size, None, status.st_mtime_ns)


def _natural(name: str) -> list[tuple[bool, int | str]]:
    """A key that sorts example_2 before example_10."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
