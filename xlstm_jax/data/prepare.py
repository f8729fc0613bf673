"""Text to token shards: `python -m xlstm_jax.data.prepare --source=SOURCE --tokenizer=TOKENIZER
--output=DIR`.

Files are dealt out to processes in jobs; each job makes one shard, whose bytes depend on its files
and the tokenizer alone. A run that was killed goes on with the same command: finished shards are
kept, others begun anew. docs/data.md tells the rest.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from xlstm_jax import command_line
from xlstm_jax.data.jobs import DOWNLOADS, Done, Settings, problems_of, read_done
from xlstm_jax.data.kept_tokenizer import TOKENIZER, install_tokenizer
from xlstm_jax.data.plan import (
    Plan,
    Request,
    check_source,
    check_still,
    check_unchanged,
    locked,
    make_plans,
    read_plan,
)
from xlstm_jax.data.shards import (
    MANIFEST,
    PLAN,
    SPLITS,
    Manifest,
    dtype_of,
    make_manifest,
    read_manifest,
    write_manifest,
)
from xlstm_jax.data.sources import Layout, layout_of
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.data.workers import Workers
from xlstm_jax.data.writing import PartialFile, explained
from xlstm_jax.errors import UserError
from xlstm_jax.installation import module, next_lines, shell_line
from xlstm_jax.progress import counted

USAGE = """Prepares token shards for training:
    python -m xlstm_jax.data.prepare --source=SOURCE --tokenizer=TOKENIZER --output=DIR
Killed or interrupted, the same command goes on."""
FLAGS = {
    "source": "a file, a folder, or a data set of the Hugging Face hub: owner/name or "
    "owner/name@revision",
    "tokenizer": "'byte', the path of a tokenizer.json, or the name of a model on the hub, e.g. "
    "gpt2",
    "end-of-text": "the tokenizer's token that ends a text, e.g. '</s>', where it is not the one "
    "that is found",
    "output": "folder for train/, validation/ and tokenizer.json",
    "split": "train, validation or both with a comma between; default: both, of a single file "
    "train",
    "files": "glob that chooses among the source's files, e.g. 'train/chunk1/*'",
    "field": "of a record that holds its text, e.g. doc.text for a field of a field; default: text",
    "join": "yes: all records of a file are one document",
    "holdout-every": "every so many files make the validation split, where the source has none",
    "max-tokens": "end each split with the document that reaches so many tokens",
    "on-damage": "skip (default): leave damaged records out and name them in report.jsonl; fail: "
    "end at the first one",
    "workers": "processes; default: as many as there are cores",
    "keep-downloads": "yes: keep the files of the hub in DIR/downloads",
}
# Bytes of input that make a job: about 45M tokens of compressed text, two minutes' work for a core.
JOB_BYTES = 1 << 26
REPORT = "report.jsonl"


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return command_line.run(
        lambda: _command(sys.argv if argv is None else argv), "the same command goes on"
    )


def _command(argv: list[str]) -> None:
    """Everything that can be a mistake is looked at before the first file is read."""
    flags = command_line.parse(argv, USAGE, FLAGS)
    source = command_line.text(flags, "source", "cerebras/SlimPajama-627B")
    output = pathlib.Path(command_line.text(flags, "output", "data/slimpajama-gpt2"))
    name = command_line.text(flags, "tokenizer", "gpt2")
    layout = layout_of(source)
    layout = dataclasses.replace(
        layout,
        files=flags["files"].value or layout.files,
        field=flags["field"].value or layout.field,
        join=_choice(flags, "join", ("no", "yes")) == "yes" if flags["join"].value else layout.join,
        holdout_every=_at_least(flags, "holdout-every", 2) or layout.holdout_every,
    )
    max_tokens = _at_least(flags, "max-tokens", 1)
    fail = _choice(flags, "on-damage", ("skip", "fail")) == "fail"
    workers = _at_least(flags, "workers", 1) or os.cpu_count()
    keep_downloads = _choice(flags, "keep-downloads", ("no", "yes")) == "yes"
    splits = _splits(flags["split"].value, pathlib.Path(source))

    opened = check_source(source, splits, layout, output)
    tokenizer = install_tokenizer(name, output, flags["end-of-text"].value)
    requests = [_request(source, split, layout, max_tokens, tokenizer) for split in splits]
    with explained(output):
        make_plans(requests, layout, output, JOB_BYTES, opened)
    for split in splits:
        prepare_split(
            source,
            split,
            tokenizer,
            output,
            layout,
            max_tokens=max_tokens,
            fail=fail,
            workers=workers,
            keep_downloads=keep_downloads,
        )
    print(*next_lines(shell_line(module("data.inspect"), output)), sep="\n", flush=True)


def _splits(given: str | None, source: pathlib.Path) -> list[str]:
    splits = (given or ("train" if source.is_file() else "train,validation")).split(",")
    for split in splits:
        if split not in SPLITS:
            raise UserError(
                f"--split is {given!r}; it must be 'train', 'validation' or 'train,validation'"
            )
    return list(dict.fromkeys(splits))


def _choice(flags: Any, name: str, choices: tuple[str, ...]) -> str:
    """The value of a flag with few values, the first being the default."""
    given = flags[name].value or choices[0]
    if given not in choices:
        raise UserError(f"--{name} is {given!r}; it must be {' or '.join(map(repr, choices))}")
    return given


def _at_least(flags: Any, name: str, least: int) -> int | None:
    """The value of an optional flag with a count."""
    given = command_line.number(flags, name)
    if given is not None and given < least:
        raise UserError(f"--{name} is {given}; it must be at least {least}")
    return given


def _request(
    source: str, split: str, layout: Layout, max_tokens: int | None, tokenizer: Tokenizer
) -> Request:
    return Request(
        source,
        split,
        layout.files,
        layout.field,
        layout.join,
        layout.holdout_every,
        max_tokens,
        tokenizer.hash,
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
    job_bytes: int | None = None,
) -> Manifest:
    """Prepares `output/split/`, or goes on with it; returns its manifest. What is complete already
    is left as it is.

    `tokenizer` comes from `install_tokenizer`; `layout` tells the files and what is in them;
    `fail` ends at the first damaged record; a job takes files of at least `job_bytes` bytes
    together (None: `JOB_BYTES`).

    Raises:
        UserError: the source can't be had or has changed, it was begun with another request, no
            document is found, or the disk is full.
    """
    layout = layout_of(source_name) if layout is None else layout
    folder = output / split
    request = _request(source_name, split, layout, max_tokens, tokenizer)
    with explained(folder):
        make_plans([request], layout, output, job_bytes or JOB_BYTES)
        with locked(folder):
            if (folder / MANIFEST).exists():
                return _complete_already(request, layout, output, fail, keep_downloads)
            plan = read_plan(output, split)
            itemsize = np.dtype(dtype_of(tokenizer.vocab_size)).itemsize
            check_unchanged(plan, request, layout, output, itemsize)
            settings = Settings(
                source=plan.source,
                folder=plan.folder,
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
            done = list(_run(plan, max_tokens, settings, tokenizer, workers))
            manifest = _finish(folder, plan, request, tokenizer, done, keep_downloads)
    told = f"{split}: {_summary(folder, manifest)}; {time.monotonic() - started:.0f} s"
    print(*command_line.wrapped(told), sep="\n", flush=True)
    if max_tokens is not None and manifest.tokens < max_tokens:
        print(
            f"{split}: fewer tokens than --max-tokens={max_tokens}: there are no more", flush=True
        )
    return manifest


def _complete_already(
    request: Request, layout: Layout, output: pathlib.Path, fail: bool, keep_downloads: bool
) -> Manifest:
    """The manifest of a split that is complete, if it is what is asked for."""
    folder = output / request.split
    manifest = read_manifest(str(output), request.split)
    if fail:
        _refuse_damage(folder, manifest.damaged)
    there = check_still(manifest, request, layout, output)
    _clean(folder, keep_downloads)
    note = "" if there else f" (the source {request.source!r} is gone and was not compared)"
    told = f"{request.split}: complete already{note}, {_summary(folder, manifest)}"
    print(*command_line.wrapped(told), sep="\n", flush=True)
    return manifest


def _refuse_damage(folder: pathlib.Path, damaged: dict[str, int]) -> None:
    """With --on-damage=fail nothing that was prepared with --on-damage=skip is taken over."""
    if damaged:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in damaged.items())
        raise UserError(
            f"--on-damage is 'fail', but {str(folder)!r} was prepared with 'skip' and left out "
            f"damaged records ({kinds}); mend these and give another --output, or leave them out "
            f"with --on-damage=skip"
        )


def _run(
    plan: Plan,
    max_tokens: int | None,
    settings: Settings,
    tokenizer: Tokenizer,
    workers: int,
) -> Iterator[Done]:
    """The finished jobs in order, up to the one that reaches `max_tokens`, which is cut off after
    the document that does.
    """
    itemsize, jobs = np.dtype(dtype_of(tokenizer.vocab_size)).itemsize, plan.jobs
    found = {
        number: done
        for number in range(len(jobs))
        if (done := read_done(settings.output, number, itemsize))
    }
    if settings.fail:
        for done in found.values():
            _refuse_damage(settings.output, done.damaged)
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
    plan: Plan,
    request: Request,
    tokenizer: Tokenizer,
    done: list[Done],
    keep_downloads: bool,
) -> Manifest:
    """Writes report and manifest, and removes what served the preparation alone."""
    problems = [problems_of(folder, job.number) for job in done if job.damaged]
    report = PartialFile(folder / REPORT)
    try:
        for path in problems:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, report.file)
        report.finish()
    except BaseException:
        report.discard()
        raise
    if not any(job.shard for job in done):
        _clean(folder, keep_downloads)  # so that another --field or source can follow
        raise UserError(
            f"no document was found; {folder / REPORT} names what is wrong. Give another --field "
            f"or --files, or mend the source"
        )
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
        source=plan.source,
        inputs=tuple(entry for job in done for entry in job.inputs),
        damaged=dict(sorted(damaged.items())),
        request=dataclasses.asdict(request),
    )
    for path in folder.glob("tokens-*.bin"):  # those of jobs behind the limit are not needed
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
        f"; {counted(left_out, 'damaged record')} left out ({kinds}), named in {folder / REPORT}"
        if left_out
        else ""
    )
    return (
        f"{counted(manifest.documents, 'document')}, {counted(manifest.tokens, 'token')}, "
        f"{counted(manifest.bytes, 'byte')} of text, "
        f"{counted(len(manifest.shards), 'shard')} in {folder}{damage}"
    )


if __name__ == "__main__":
    sys.exit(main())
