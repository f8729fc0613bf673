"""Text to token shards: `python -m xlstm_jax.data.prepare --source=SOURCE --tokenizer=TOKENIZER
--output=DIR`.

Files are dealt out to processes in jobs; each job makes one shard, whose bytes depend on its files
and the tokenizer alone. A run that was killed goes on with the same command: finished shards are
kept, others begun anew. docs/data.md tells the rest.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from xlstm_jax import command_line
from xlstm_jax.data import hub
from xlstm_jax.data.jobs import DOWNLOADS, Done, Settings, problems_of, read_done
from xlstm_jax.data.shards import (
    MANIFEST,
    Manifest,
    dtype_of,
    make_manifest,
    read_manifest,
    write_manifest,
    write_whole,
)
from xlstm_jax.data.sources import InputFile, Layout, layout_of, open_source, select
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.data.workers import Workers
from xlstm_jax.errors import UserError

USAGE = """Prepares token shards for training: python -m xlstm_jax.data.prepare --source=SOURCE --tokenizer=TOKENIZER --output=DIR
Killed or interrupted, the same command goes on."""
FLAGS = {
    "source": "a file, a folder, or a data set of the Hugging Face hub: owner/name or owner/name@revision",
    "tokenizer": "'byte', the path of a tokenizer.json, or the name of a model on the hub, e.g. gpt2",
    "output": "folder for train/, validation/ and tokenizer.json",
    "split": "train, validation or both with a comma between; default: both where the source has them",
    "files": "glob that chooses among the source's files, e.g. 'train/chunk1/*'",
    "field": "of a record that holds its text; default: text",
    "join": "yes: all records of a file are one document",
    "holdout-every": "every so many files make the validation split, where the source has none",
    "max-tokens": "end each split with the document that reaches so many tokens",
    "on-damage": "skip (default): leave damaged records out and name them in report.jsonl; fail: end at the first one",
    "workers": "processes; default: as many as there are cores",
    "keep-downloads": "yes: keep the files of the hub in DIR/downloads",
}
JOB_BYTES = 1 << 26  # of input: about 45M tokens of compressed text, less than two minutes' work
REPORT = "report.jsonl"
PLAN = "plan.json"
TOKENIZER = "tokenizer.json"


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


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command_line.run(
        lambda: _command(sys.argv if argv is None else argv), "the same command goes on"
    )


def _command(argv: list[str]) -> None:
    flags = command_line.parse(argv, USAGE, FLAGS)
    source = command_line.text(flags, "source", "cerebras/SlimPajama-627B")
    output = pathlib.Path(command_line.text(flags, "output", "data/slimpajama-gpt2"))
    tokenizer = install_tokenizer(command_line.text(flags, "tokenizer", "gpt2"), output)
    layout = layout_of(source)
    layout = dataclasses.replace(
        layout,
        files=flags["files"].value or layout.files,
        field=flags["field"].value or layout.field,
        join=_choice(flags, "join", ("no", "yes")) == "yes" if flags["join"].value else layout.join,
        holdout_every=command_line.number(flags, "holdout-every") or layout.holdout_every,
    )
    workers = command_line.number(flags, "workers")
    for split in _splits(flags["split"].value, pathlib.Path(source)):
        prepare_split(
            source,
            split,
            tokenizer,
            output,
            layout,
            max_tokens=command_line.number(flags, "max-tokens"),
            fail=_choice(flags, "on-damage", ("skip", "fail")) == "fail",
            workers=os.cpu_count() if workers is None else max(workers, 1),
            keep_downloads=_choice(flags, "keep-downloads", ("no", "yes")) == "yes",
        )


def _splits(given: str | None, source: pathlib.Path) -> list[str]:
    splits = (given or ("train" if source.is_file() else "train,validation")).split(",")
    for split in splits:
        if split not in ("train", "validation"):
            raise UserError(
                f"--split is {given!r}; it must be 'train', 'validation' or 'train,validation'"
            )
    return splits


def _choice(flags: Any, name: str, choices: tuple[str, ...]) -> str:
    """The value of a flag with few values, the first being the default."""
    given = flags[name].value or choices[0]
    if given not in choices:
        raise UserError(f"--{name} is {given!r}; it must be {' or '.join(map(repr, choices))}")
    return given


def install_tokenizer(name: str, output: pathlib.Path) -> Tokenizer:
    """Loads the tokenizer, which from now on lies in the prepared folder as tokenizer.json, unless
    it is 'byte'.

    Raises:
        UserError: it can't be had, or the folder holds another one.
    """
    output.mkdir(parents=True, exist_ok=True)
    if name == "byte":
        return load_tokenizer(name)
    path = pathlib.Path(name)
    if not path.is_file():
        path = hub.download_tokenizer(name, output / DOWNLOADS)
    tokenizer = load_tokenizer(str(path))
    installed = output / TOKENIZER
    if installed.exists() and load_tokenizer(str(installed)).hash != tokenizer.hash:
        raise UserError(
            f"{str(output)!r} was prepared with another tokenizer than {name!r}; give another "
            f"--output"
        )
    if not installed.exists():
        write_whole(installed, path.read_bytes().decode())
    return dataclasses.replace(
        tokenizer, name=name if not pathlib.Path(name).is_file() else path.stem
    )


def prepare_split(
    source_name: str,
    split: str,
    tokenizer: Tokenizer,
    output: pathlib.Path,
    layout: Layout | None = None,
    *,
    max_tokens: int | None = None,
    fail: bool = False,
    workers: int = 1,
    keep_downloads: bool = False,
    job_bytes: int = JOB_BYTES,
) -> Manifest:
    """Prepares `output/split/`, or goes on with it; returns its manifest. What is complete already
    is left as it is.

    `output` holds the tokenizer already (`install_tokenizer`). One worker works in this process.

    Raises:
        UserError: the source, its files or what lies in the folder are not as they should be.
    """
    layout = layout or layout_of(source_name)
    folder = output / split
    folder.mkdir(parents=True, exist_ok=True)
    request = Request(
        source_name,
        split,
        layout.files,
        layout.field,
        layout.join,
        layout.holdout_every,
        max_tokens,
        tokenizer.hash,
    )
    with _locked(folder):
        if (folder / MANIFEST).exists():
            manifest = read_manifest(str(output), split)
            _check_request(folder, manifest.request, request)
            _clean(folder, keep_downloads)
            print(f"{split}: complete already, {_summary(folder, manifest)}", flush=True)
            return manifest
        source, local, jobs = _plan(folder, request, layout, job_bytes)
        settings = Settings(
            source=source,
            folder=local,
            output=folder,
            tokenizer="byte" if tokenizer.hash == "byte" else str(output / TOKENIZER),
            field=layout.field,
            join=layout.join,
            fail=fail,
            keep_downloads=keep_downloads,
        )
        for partial in folder.glob("*.partial"):
            partial.unlink()
        started = time.monotonic()
        done = list(_run(jobs, max_tokens, settings, tokenizer, workers))
        manifest = _finish(folder, source, request, tokenizer, done, keep_downloads)
    print(f"{split}: {_summary(folder, manifest)}; {time.monotonic() - started:.0f} s", flush=True)
    return manifest


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{str(folder)!r} is being prepared by another process; wait for it"
            ) from None
        yield


def _check_request(folder: pathlib.Path, found: dict[str, Any], request: Request) -> None:
    for key, value in dataclasses.asdict(request).items():
        if found.get(key) != value:
            raise UserError(
                f"{str(folder)!r} was begun with {key.replace('_', '-')} {found.get(key)!r}, not "
                f"{value!r}; give another --output, "
                "or remove that folder"
            )


def _plan(
    folder: pathlib.Path, request: Request, layout: Layout, job_bytes: int
) -> tuple[str, pathlib.Path | None, list[tuple[InputFile, ...]]]:
    """The source's name, its local folder, and the files of each job; written down at first, so
    that a later run has the same.
    """
    path = folder / PLAN
    if path.exists():
        plan = json.loads(path.read_text())
        _check_request(folder, plan["request"], request)
    else:
        source = open_source(request.source)
        files = select(source, request.split, layout.files, layout.holdout_every)
        plan = {
            "request": dataclasses.asdict(request),
            "source": source.name,
            "folder": source.folder and str(source.folder),
            "jobs": [
                [dataclasses.astuple(file) for file in job] for job in _jobs(files, job_bytes)
            ],
        }
        write_whole(path, json.dumps(plan))
    jobs = [tuple(InputFile(*file) for file in job) for job in plan["jobs"]]
    return plan["source"], plan["folder"] and pathlib.Path(plan["folder"]), jobs


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


def _run(
    jobs: list[tuple[InputFile, ...]],
    max_tokens: int | None,
    settings: Settings,
    tokenizer: Tokenizer,
    workers: int,
) -> Iterator[Done]:
    """The finished jobs in order, up to the one that reaches `max_tokens`, which is cut off after
    the document that does.
    """
    itemsize = np.dtype(dtype_of(tokenizer.vocab_size)).itemsize
    found = {
        number: done
        for number in range(len(jobs))
        if (done := read_done(settings.output, number, itemsize))
    }
    total_bytes = sum(file.size for job in jobs for file in job)
    with (
        Workers(settings, tokenizer, workers) as pool,
        pool.bar(max_tokens, total_bytes) as count_earlier,
    ):
        pending, ahead, tokens = {}, 0, 0
        for number, job in enumerate(jobs):
            while ahead < len(jobs) and len(pending) < 2 * workers:
                if ahead not in found:
                    pending[ahead] = pool.submit(ahead, jobs[ahead], None)
                ahead += 1
            done = found.get(number) or pending.pop(number).result()
            if number in found:
                count_earlier(done.tokens, sum(file.size for file in job))
            missing = None if max_tokens is None else max_tokens - tokens
            if missing is not None and done.limit is None and done.tokens > missing:
                for future in pending.values():
                    future.cancel()
                done = pool.submit(number, job, missing).result()
            tokens += done.tokens
            yield done
            if max_tokens is not None and tokens >= max_tokens:
                return


def _finish(
    folder: pathlib.Path,
    source: str,
    request: Request,
    tokenizer: Tokenizer,
    done: list[Done],
    keep_downloads: bool,
) -> Manifest:
    """Writes report and manifest, and removes what served the preparation alone."""
    problems = [problems_of(folder, job.number) for job in done if job.damaged]
    report = folder / f"{REPORT}.{os.getpid()}.partial"
    with open(report, "wb") as file:
        for path in problems:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, file)
    report.replace(folder / REPORT)
    if not any(job.shard for job in done):
        raise UserError(f"no document was found; {folder / REPORT} names what is wrong")
    damaged = {}
    for job in done:
        for kind, count in job.damaged.items():
            damaged[kind] = damaged.get(kind, 0) + count
    manifest = make_manifest(
        request.split,
        tokenizer,
        [job.shard for job in done if job.shard],
        sum(job.documents for job in done),
        sum(job.bytes for job in done),
        source=source,
        inputs=tuple(entry for job in done for entry in job.inputs),
        damaged=dict(sorted(damaged.items())),
        request=dataclasses.asdict(request),
    )
    for path in folder.glob("tokens-*.bin"):  # of jobs after the limit
        if path.name not in {shard.file for shard in manifest.shards}:
            path.unlink()
    write_manifest(folder, manifest)
    _clean(folder, keep_downloads)
    return manifest


def _clean(folder: pathlib.Path, keep_downloads: bool) -> None:
    for path in [
        *folder.glob("tokens-*.json"),
        *folder.glob("*.problems"),
        *folder.glob("*.partial"),
        folder / PLAN,
    ]:
        path.unlink(missing_ok=True)
    if not keep_downloads:
        shutil.rmtree(folder / DOWNLOADS, ignore_errors=True)


def _summary(folder: pathlib.Path, manifest: Manifest) -> str:
    left_out = sum(manifest.damaged.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.damaged.items())
    damage = (
        f"; {left_out:,} damaged records left out ({kinds}), named in {folder / REPORT}"
        if left_out
        else ""
    )
    return (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.bytes:,} bytes "
        f"of text, "
        f"{len(manifest.shards):,} shards in {folder}{damage}"
    )


if __name__ == "__main__":
    sys.exit(main())
