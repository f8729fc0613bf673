"""One job of a preparation: some input files become one shard, always the same bytes, in bounded
memory.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable

from xlstm_jax.data import hub
from xlstm_jax.data.documents import KINDS, Damage, read_documents
from xlstm_jax.data.encoding import Tokens, encode_pieces
from xlstm_jax.data.shards import Input, Shard, ShardWriter, dtype_of, shard_name, write_whole
from xlstm_jax.data.sources import InputFile
from xlstm_jax.data.tokenizer import Tokenizer
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
        """Of the shard."""
        return self.shard.tokens if self.shard else 0


Progress = Callable[[int, int], None]  # tokens and bytes of input since the last call


class Problems:
    """What a job leaves out, named in a file line by line and counted by kind; or an error, where
    it has to `fail`.
    """

    def __init__(self, path: pathlib.Path, fail: bool):
        self._path, self._partial, self._fail = (
            path,
            path.with_name(f"{path.name}.{os.getpid()}.partial"),
            fail,
        )
        self._file = open(self._partial, "w")
        self.counts: collections.Counter[str] = collections.Counter()
        self.latest: Damage | None = None

    def add(self, file: str, damage: Damage) -> None:
        """One record of a file."""
        if self._fail:
            raise UserError(
                f"{file}, line {damage.line}: {KINDS[damage.kind]} {damage.detail}; mend it, or "
                f"leave such records out with "
                "--on-damage=skip"
            )
        self.counts[damage.kind] += 1
        self.latest = damage
        self._file.write(json.dumps({"file": file, **damage._asdict()}) + "\n")

    def close(self) -> None:
        """Completes the file; without any damage there is none."""
        self._file.close()
        if self.counts:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()


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
        UserError: damage where `settings.fail` asks for it, a file that can't be had, or a first
            file without any text.
    """
    writer = ShardWriter(settings.output / shard_name(number), dtype_of(tokenizer.vocab_size))
    problems = Problems(problems_of(settings.output, number), settings.fail)
    inputs, documents, num_bytes = [], 0, 0

    for file in files:
        path = _local(file, settings)
        on_damage = functools.partial(problems.add, file.name)
        before, before_documents = writer.tokens, documents
        for tokens in encode_pieces(
            read_documents(path, settings.field, settings.join, on_damage), tokenizer
        ):
            end = None if limit is None else _end(tokens, limit - writer.tokens, tokenizer)
            tokens = end or tokens
            writer.write(tokens.ids)
            documents, num_bytes = documents + tokens.documents, num_bytes + tokens.bytes
            progress(len(tokens.ids), 0)
            if end:
                break
        progress(0, file.size)
        inputs.append(
            Input(
                file.name,
                file.size,
                file.sha256,
                writer.path.name,
                documents - before_documents,
                writer.tokens - before,
            )
        )
        if number == 0 and len(inputs) == 1 and not documents and problems.counts["field"]:
            raise UserError(
                f"{file.name} has no text: {problems.latest.detail}; name the field with --field"
            )
        if settings.folder is None and not settings.keep_downloads:
            path.unlink()
        if limit is not None and writer.tokens >= limit:
            break

    shard = writer.close()
    problems.close()
    if not shard.tokens:
        writer.path.unlink()
    counts = dict(sorted(problems.counts.items()))
    done = Done(
        number, limit, shard if shard.tokens else None, documents, num_bytes, counts, tuple(inputs)
    )
    write_whole(record_of(settings.output, number), json.dumps(dataclasses.asdict(done)))
    return done


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


def record_of(output: pathlib.Path, number: int) -> pathlib.Path:
    """Where a finished job's record lies while the preparation goes on."""
    return (output / shard_name(number)).with_suffix(".json")


def problems_of(output: pathlib.Path, number: int) -> pathlib.Path:
    """Where a finished job's damage is named while the preparation goes on."""
    return (output / shard_name(number)).with_suffix(".problems")


def _local(file: InputFile, settings: Settings) -> pathlib.Path:
    if settings.folder is None:
        return hub.download(
            settings.source, file.name, file.size, file.sha256, settings.output / DOWNLOADS
        )
    path = settings.folder / file.name
    if not path.is_file() or path.stat().st_size != file.size:
        raise UserError(
            f"{str(path)!r} has changed since the preparation began; remove "
            f"{str(settings.output)!r} and begin anew"
        )
    return path


def _end(tokens: Tokens, missing: int, tokenizer: Tokenizer) -> Tokens | None:
    return tokens.up_to_document_end(missing, tokenizer.end_of_text)
