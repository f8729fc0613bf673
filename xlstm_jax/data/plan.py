"""What a preparation is going to do, settled before it begins: which files make which split, in
which jobs, and that they are still those files when it goes on later.

The plan of a split lies in `plan.json` until the split is complete; its manifest then names the
same files. A source that has changed since is refused: shards of its old and its new state would
be mixed, or new text left out without a word.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from xlstm_jax import paths, progress
from xlstm_jax.data.jobs import DOWNLOADS, has_begun, read_done
from xlstm_jax.data.shards import LOCK, MANIFEST, PLAN, SPLITS, Manifest, read_manifest
from xlstm_jax.data.sources import InputFile, Layout, Source, left_out, open_source, select
from xlstm_jax.data.writing import write_whole
from xlstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; the bytes of the result depend on these and on the files alone."""

    source: str
    split: str
    files: str
    field: str
    join: bool
    holdout_every: int | None
    max_tokens: int | None
    tokenizer: str  # hash


@dataclasses.dataclass(frozen=True)
class Plan:
    """The jobs of a split.

    Attributes:
        source: its name, for the hub with the commit.
        folder: of the local files; None for the hub.
        jobs: the files of each.
    """

    source: str
    folder: pathlib.Path | None
    jobs: list[tuple[InputFile, ...]]


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Inside it no other process prepares this split."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{str(folder)!r} is being prepared by another process; wait for it"
    with paths.locked(folder / LOCK, busy):
        yield


def check_source(
    name: str, splits: Sequence[str], layout: Layout, output: pathlib.Path
) -> Source | None:
    """Settles before any work that every split can be had; returns the source for `make_plans`,
    None where all splits are begun or complete.

    Raises:
        UserError: one of the splits that are not begun has no files, or shares one with another.
    """
    new = [split for split in splits if not _is_there(output / split)]
    if not new:
        return None
    source = _opened(name, output)
    _choose(source, new, layout, output)
    return source


def make_plans(
    requests: Sequence[Request],
    layout: Layout,
    output: pathlib.Path,
    job_bytes: int,
    source: Source | None = None,
) -> None:
    """Writes down the plans of the splits that have none yet; all of them or, on an error, none.

    What was begun with another request and has no finished job is begun anew.

    Raises:
        UserError: as `check_source`, or a split was begun with another request.
    """
    new = []
    with contextlib.ExitStack() as stack:
        for request in requests:
            folder = output / request.split
            stack.enter_context(locked(folder))
            if (folder / MANIFEST).exists():
                manifest = read_manifest(str(output), request.split)
                _check_request(folder, manifest.request, request)
                continue
            if (folder / PLAN).exists():
                begun = _read(folder)["request"]
                if begun == dataclasses.asdict(request):
                    continue
                if has_begun(folder):
                    _check_request(folder, begun, request)
                # What was downloaded may belong to another commit of the data set.
                shutil.rmtree(folder / DOWNLOADS, ignore_errors=True)
                (folder / PLAN).unlink()
            new.append(request)
        if not new:
            return
        source = source or _opened(new[0].source, output)
        files = _choose(source, [request.split for request in new], layout, output)
        for request in new:
            jobs = [
                [dataclasses.astuple(file) for file in job]
                for job in _jobs(files[request.split], job_bytes)
            ]
            plan = {
                "request": dataclasses.asdict(request),
                "source": source.name,
                "folder": source.folder and str(source.folder),
                "jobs": jobs,
            }
            write_whole(output / request.split / PLAN, json.dumps(plan))
    taken = {file.name for chosen in files.values() for file in chosen}
    told = left_out(source, layout.files, taken)
    if told:
        print(told, flush=True)


def read_plan(output: pathlib.Path, split: str) -> Plan:
    """The plan of a split that `make_plans` wrote."""
    plan = _read(output / split)
    jobs = [tuple(InputFile(*file) for file in job) for job in plan["jobs"]]
    return Plan(plan["source"], plan["folder"] and pathlib.Path(plan["folder"]), jobs)


def check_unchanged(
    plan: Plan, request: Request, layout: Layout, output: pathlib.Path, itemsize: int
) -> None:
    """Checks that a local source is what it was when the plan was made; the finished jobs' files by
    their content where it is not certain that nobody wrote to them.

    Raises:
        UserError: a file is new, gone or changed.
    """
    if plan.folder is None:
        return
    folder = output / request.split
    planned = {file.name: file for job in plan.jobs for file in job}
    found = _listed(request, layout, output)
    if found is None:
        raise UserError(f"--source {request.source!r} is gone; bring it back to go on")
    _check_names(list(planned), list(found), folder, "the preparation began")
    for number, job in enumerate(_compared(plan.jobs)):
        done = read_done(folder, number, itemsize)
        hashes = {entry.file: entry.sha256 for entry in done.inputs} if done else {}
        when = (folder / f"tokens-{number:05d}.json").stat().st_mtime_ns if done else 0
        for file in job:
            path, same = plan.folder / file.name, found[file.name].size == file.size
            if hashes.get(file.name):
                if _written_since(path, file.changed, when):
                    same = same and sha256_of(path) == hashes[file.name]
            elif file.changed is not None:  # plans of earlier versions know the sizes alone
                same = same and found[file.name].changed == file.changed
            if not same:
                raise _changed(path, folder, "the preparation began")


def check_still(manifest: Manifest, request: Request, layout: Layout, output: pathlib.Path) -> bool:
    """Whether a complete split's local source is there; if so, that it is what it was.

    Files that were written to after the manifest are read and compared by their content.

    Raises:
        UserError: a file is new, gone or changed.
    """
    folder = output / request.split
    found = _listed(request, layout, output)
    if found is None:  # gone, or on the hub, where the files of a commit do not change
        return manifest.source != request.source or "@" in request.source
    names = list(found)
    if request.max_tokens is not None:  # the files behind the limit were not read
        names = names[: len(manifest.inputs)]
    _check_names([entry.file for entry in manifest.inputs], names, folder, "it was prepared")
    when = (folder / MANIFEST).stat().st_mtime_ns
    root = pathlib.Path(request.source)
    root = root.parent if root.is_file() else root
    for entry in _compared(manifest.inputs):
        path, same = root / entry.file, found[entry.file].size == entry.size
        if same and entry.sha256 and _written_since(path, None, when):
            same = sha256_of(path) == entry.sha256
        if not same:
            raise _changed(path, folder, "it was prepared")
    return True


def sha256_of(path: pathlib.Path) -> str:
    """The hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written_since(path: pathlib.Path, changed: int | None, when: int) -> bool:
    """Whether a file may have another content than at `when` (ns), `changed` being the time of its
    last change then; the time that the system keeps of any change can't be set by programs. Times
    go by steps of some milliseconds, so that an equal one says nothing.
    """
    status = path.stat()
    if changed is not None and status.st_mtime_ns != changed:
        return True
    return max(status.st_mtime_ns, status.st_ctime_ns) >= when


def _opened(name: str, output: pathlib.Path) -> Source:
    """A source, which is not where the output goes."""
    for folder in (output, *(output / split for split in SPLITS)):
        if pathlib.Path(name).exists() and folder.resolve() == pathlib.Path(name).resolve():
            raise UserError(
                f"--output={output} would write into the source {name!r}; give another folder"
            )
    return open_source(name, output)


def _compared(entries: Sequence[Any]) -> Iterator[Any]:
    """The entries, with progress and the time left where they take long."""
    with progress.bar(len(entries), "comparing the source", "entries") as bar:
        for entry in entries:
            yield entry
            bar.update()


def _choose(
    source: Source, splits: Sequence[str], layout: Layout, output: pathlib.Path
) -> dict[str, tuple[InputFile, ...]]:
    """The files of each split. No file is in two splits, those prepared before included."""
    files = {split: select(source, split, layout.files, layout.holdout_every) for split in splits}
    owners = {key: split for split in SPLITS for key in _keys_of_prepared(output, split)}
    for split, chosen in files.items():
        for file in chosen:
            owner = owners.setdefault(_key(source.name, file.name), split)
            if owner != split:
                raise UserError(
                    f"{file.name!r} of {source.name!r} would be in the splits {owner!r} and "
                    f"{split!r} of {str(output)!r}: what a model is tested on must not be trained "
                    f"on. Give --split and another source for one of them, or another --output"
                )
    return files


def _keys_of_prepared(output: pathlib.Path, split: str) -> list[str]:
    """What `_key` says of the files that a split has, finished or not."""
    if (output / split / MANIFEST).is_file():
        manifest = read_manifest(str(output), split)
        return [_key(manifest.source, entry.file) for entry in manifest.inputs]
    if (output / split / PLAN).is_file():
        plan = read_plan(output, split)
        return [_key(plan.source, file.name) for job in plan.jobs for file in job]
    return []


def _key(source: str, file: str) -> str:
    """What tells one file from another, however its source is written: its path, or its data set
    without the commit.
    """
    path = pathlib.Path(source)
    if path.is_file():
        return str(path.resolve())
    return str((path / file).resolve()) if path.is_dir() else f"{source.partition('@')[0]}/{file}"


def _is_there(folder: pathlib.Path) -> bool:
    return (folder / MANIFEST).exists() or ((folder / PLAN).exists() and has_begun(folder))


def _listed(request: Request, layout: Layout, output: pathlib.Path) -> dict[str, InputFile] | None:
    """The files of a split as they are now; None where the source is gone."""
    if not pathlib.Path(request.source).exists():
        return None
    source = open_source(request.source, output)
    files = select(source, request.split, layout.files, layout.holdout_every)
    return {file.name: file for file in files}


def _check_names(before: list[str], now: list[str], folder: pathlib.Path, since: str) -> None:
    if before == now:
        return
    new, gone = sorted({*now} - {*before}), sorted({*before} - {*now})
    told = [f"{names[0]!r} is {what}" for names, what in ((new, "new"), (gone, "gone")) if names]
    count = len(new) + len(gone)
    more = f" ({progress.counted(count, 'file')} in all)" if count > len(told) else ""
    raise UserError(
        f"the source of {str(folder)!r} has changed since {since}: "
        f"{', '.join(told) or 'its files have another order'}{more}; undo that, give another "
        f"--output, or remove {str(folder)!r} to begin anew"
    )


def _changed(path: pathlib.Path, folder: pathlib.Path, since: str) -> UserError:
    return UserError(
        f"{str(path)!r} has changed since {since}; bring back the old file (with its time), give "
        f"another --output, or remove {str(folder)!r} to begin anew"
    )


def _check_request(folder: pathlib.Path, found: dict[str, Any], request: Request) -> None:
    for key, value in dataclasses.asdict(request).items():
        if found.get(key) != value:
            raise UserError(
                f"{str(folder)!r} was begun with {key.replace('_', '-')} {found.get(key)!r}, not "
                f"{value!r}; give another --output, or remove that folder"
            )


def _read(folder: pathlib.Path) -> dict[str, Any]:
    try:
        plan = json.loads((folder / PLAN).read_text())
        if not plan["jobs"] or not isinstance(plan["request"], dict):
            raise ValueError("it has no jobs")
        return plan
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / PLAN} is damaged ({error}); remove {str(folder)!r} to begin anew"
        ) from None


def _jobs(files: tuple[InputFile, ...], job_bytes: int) -> Iterator[list[InputFile]]:
    """Neighbouring files, together at least `job_bytes` where there are so many."""
    job, size = [], 0
    for file in files:
        job.append(file)
        size += file.size
        if size >= job_bytes:
            yield job
            job, size = [], 0
    if job:
        yield job
