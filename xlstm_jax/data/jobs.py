"""One job of a preparation: some input files become one shard, always the same bytes, in bounded
memory.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable

from xlstm_jax.data import hub
from xlstm_jax.data.documents import BLOCK, KINDS, Damage, read_documents
from xlstm_jax.data.encoding import encode_pieces
from xlstm_jax.data.shards import Input, Shard, ShardWriter, dtype_of, shard_name
from xlstm_jax.data.sources import InputFile
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.data.writing import PartialFile, explained, write_whole
from xlstm_jax.errors import UserError

DOWNLOADS = "downloads"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all jobs of a preparation share.

    Attributes:
        source: name with the commit, for the hub.
        folder: of the local files; None for the hub.
        output: the split's folder.
        fail: end at the first damage instead of leaving the record out.
    """

    source: str
    folder: pathlib.Path | None
    output: pathlib.Path
    tokenizer: str
    field: str
    join: bool
    fail: bool
    keep_downloads: bool


@dataclasses.dataclass(frozen=True)
class Done:
    """The record of a finished job, `tokens-00000.json` beside its shard.

    Attributes:
        limit: the number of tokens that it ended after, with the document; None: all.
        shard: None where the files have no document.
    """

    number: int
    limit: int | None
    shard: Shard | None
    documents: int
    bytes: int
    damaged: dict[str, int]
    inputs: tuple[Input, ...]

    @property
    def tokens(self) -> int:
        """The shard's number of tokens."""
        return self.shard.tokens if self.shard else 0


Progress = Callable[[int, int], None]  # tokens and bytes of input since the last call


class Problems:
    """What a job leaves out, named in a file line by line and counted by kind; or an error, where
    it has to `fail`. A context: an error removes what was written.
    """

    def __init__(self, path: pathlib.Path, fail: bool):
        self._partial, self._fail = PartialFile(path), fail
        self.counts: collections.Counter[str] = collections.Counter()
        self.latest: Damage | None = None

    def add(self, file: str, damage: Damage) -> None:
        """What is damaged in a file."""
        if self._fail:
            raise UserError(
                f"{file}, line {damage.line}: {KINDS[damage.kind]} {damage.detail}; mend it, or "
                f"leave such records out with --on-damage=skip"
            )
        self.counts[damage.kind] += damage.records
        self.latest = damage
        line = json.dumps({"file": file, **damage._asdict()}) + "\n"
        self._partial.file.write(line.encode())

    def close(self) -> None:
        """Completes the file; without any damage there is none."""
        if self.counts:
            self._partial.finish()
        else:
            self._partial.discard()

    def __enter__(self) -> "Problems":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._partial.discard()


def run_job(
    number: int,
    files: tuple[InputFile, ...],
    limit: int | None,
    settings: Settings,
    tokenizer: Tokenizer,
    progress: Progress,
) -> Done:
    """Makes the shard, the report of what was left out, and at last the record; all three lie in
    `settings.output`.

    Raises:
        UserError: damage where `settings.fail` asks for it, a file that can't be had or that
            changes, a first file without any text, or a full disk.
    """
    path = settings.output / shard_name(number)
    inputs, documents, num_bytes = [], 0, 0
    with (
        explained(settings.output),
        ShardWriter(path, dtype_of(tokenizer.vocab_size)) as writer,
        Problems(problems_of(settings.output, number), settings.fail) as problems,
    ):
        for file in files:
            before, before_documents = writer.tokens, documents
            reading = _Reading(file, settings, progress)
            pieces = read_documents(
                reading.path,
                settings.field,
                settings.join,
                functools.partial(problems.add, file.name),
                reading.count,
            )
            for tokens in encode_pieces(pieces, tokenizer):
                end = None if limit is None else tokens.up_to_document_end(limit - writer.tokens)
                tokens = end or tokens
                writer.write(tokens.ids)
                documents, num_bytes = documents + tokens.documents, num_bytes + tokens.bytes
                progress(len(tokens.ids), 0)
                if end:
                    break
            reading.finish()
            inputs.append(
                Input(
                    file.name,
                    file.size,
                    reading.sha256,
                    path.name,
                    documents - before_documents,
                    writer.tokens - before,
                )
            )
            if number == 0 and len(inputs) == 1 and not documents and problems.counts["field"]:
                raise UserError(
                    f"{file.name} has no text: {problems.latest.detail}; name the field with "
                    f"--field"
                )
            if settings.folder is None and not settings.keep_downloads:
                reading.path.unlink()
            if limit is not None and writer.tokens >= limit:
                break

        shard = writer.close()
        problems.close()
        if not shard.tokens:
            path.unlink()
        counts = dict(sorted(problems.counts.items()))
        found = shard if shard.tokens else None
        done = Done(number, limit, found, documents, num_bytes, counts, tuple(inputs))
        write_whole(record_of(settings.output, number), json.dumps(dataclasses.asdict(done)))
    return done


class _Reading:
    """One file of a source while it is read.

    Attributes:
        path: where it lies on this machine.
        sha256: of its content; of a file of the hub, as the hub tells it.
    """

    def __init__(self, file: InputFile, settings: Settings, progress: Progress):
        self._file, self._settings, self._progress, self._counted = file, settings, progress, 0
        if settings.folder is None:
            self.path = hub.download(
                settings.source, file.name, file.size, file.sha256, settings.output / DOWNLOADS
            )
            self.sha256, self._before = file.sha256, None
            return
        self.path = settings.folder / file.name
        self._before = self._state()
        if self._before[0] != file.size or file.changed not in (None, self._before[1]):
            raise self._changed("the preparation began")
        digest = hashlib.sha256()
        with open(self.path, "rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
                progress(0, 0)  # which ends the job when the preparation ends
        self.sha256 = digest.hexdigest()

    def count(self, num_bytes: int) -> None:
        """So many bytes of the file were read since the last call."""
        self._counted += num_bytes
        self._progress(0, num_bytes)

    def finish(self) -> None:
        """Nothing more is read, at the file's end or before it."""
        self.count(self._file.size - self._counted)
        if self._before is not None and self._state() != self._before:
            raise self._changed("it was begun to be read")

    def _state(self) -> tuple[int, ...]:
        """What changes with the file's content; nothing where it is gone."""
        if not self.path.is_file():
            return (-1, -1)
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _changed(self, since: str) -> UserError:
        output = str(self._settings.output)
        return UserError(
            f"{str(self.path)!r} has changed since {since}; bring back the old file (with its "
            f"time), or remove {output!r} to begin anew"
        )


def read_done(output: pathlib.Path, number: int, itemsize: int) -> Done | None:
    """The record of a job that is finished, its shard being there; else None."""
    try:
        values = json.loads(record_of(output, number).read_text())
        shard = values["shard"] and Shard(**values["shard"])
        done = Done(
            **{
                **values,
                "shard": shard,
                "inputs": tuple(Input(**entry) for entry in values["inputs"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    path = output / shard_name(number)
    size = path.stat().st_size if path.exists() else 0
    return done if size == done.tokens * itemsize else None


def has_begun(output: pathlib.Path) -> bool:
    """Whether a split that is not complete has finished jobs."""
    return any(output.glob("tokens-*.json"))


def record_of(output: pathlib.Path, number: int) -> pathlib.Path:
    """Where a finished job's record lies while the preparation goes on."""
    return (output / shard_name(number)).with_suffix(".json")


def problems_of(output: pathlib.Path, number: int) -> pathlib.Path:
    """Where a finished job's damage is named while the preparation goes on."""
    return (output / shard_name(number)).with_suffix(".problems")
