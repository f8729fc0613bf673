"""What lies in a prepared folder: `python -m xlstm_jax.data.inspect DIR`.

Prints each split's manifest in words, verifies every hash, shows documents decoded and how long
they are. The exit status is 1 where something is damaged.
"""

import pathlib
import sys
from collections.abc import Callable, Iterator

import numpy as np

from xlstm_jax import command_line, progress
from xlstm_jax.data import shards
from xlstm_jax.data.kept_tokenizer import TOKENIZER
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.installation import module, next_lines, program, shell_line
from xlstm_jax.paths import refuse_address

USAGE = """Shows what a prepared folder holds:
    python -m xlstm_jax.data.inspect DIR [--documents=3] [--verify=no]"""
FLAGS = {
    "split": "one of the splits; default: all",
    "documents": "how many documents of each split are shown; default: 3",
    "verify": "no: read no more than the first shard of each split",
}
READ = 1 << 22  # tokens that are read at a time
SHOWN = 400  # characters that are shown of each end of a long document
BAR = 50  # characters of the histogram's longest bar
DAMAGED = 1


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    found_damage = []
    status = command_line.run(lambda: found_damage.append(_command(argv)))
    return status or (DAMAGED if any(found_damage) else 0)


def _command(argv: list[str]) -> bool:
    folder = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else None
    flags = command_line.parse(argv, USAGE, FLAGS)
    if folder is None:
        raise UserError(
            f"the folder is missing; give it first, e.g. {module('data.inspect')} "
            f"data/slimpajama-gpt2"
        )
    refuse_address("the folder", folder)
    if not shards.is_prepared(folder):
        raise UserError(
            f"{folder!r} holds no prepared data: neither train/ nor validation/ has a manifest"
        )
    if flags["verify"].value not in (None, "yes", "no"):
        raise UserError(f"--verify is {flags['verify'].value!r}; it must be 'yes' or 'no'")
    shown = command_line.number(flags, "documents")
    splits = [flags["split"].value] if flags["split"].value else [
        split
        for split in shards.SPLITS
        if _is_there(folder, split)
    ]  # fmt: skip
    problems = [
        inspect(folder, split, 3 if shown is None else shown, flags["verify"].value != "no")
        for split in splits
    ]
    if not any(problems) and all(_is_there(folder, split) for split in shards.SPLITS):
        _print(_training(folder))
    return any(problems)


def _is_there(folder: str, split: str) -> bool:
    return (pathlib.Path(folder) / split / shards.MANIFEST).exists()


def _training(folder: str) -> str:
    """The command that trains on a sound folder with both splits."""
    manifest = shards.read_manifest(folder, "train")
    keys: dict[str, object] = {"config.data.path": folder}
    if manifest.tokenizer_hash != "byte":
        keys["config.data.tokenizer"] = f"{folder}/{TOKENIZER}"
        keys["config.model.vocab_size"] = manifest.vocab_size
    start = shell_line(program("train"), config="quickstart", workdir="runs/NAME")
    more = [shell_line("", **{name: value}).strip() for name, value in keys.items()]
    return "\n".join(next_lines(" \\\n      ".join([start, *more])))


def inspect(folder: str, split: str, shown: int, verify: bool) -> list[str]:
    """Prints what a split holds; returns what is wrong with it, in words.

    Raises:
        UserError: the manifest is missing or damaged, or a shard has another size.
    """
    manifest = shards.read_manifest(folder, split)
    tokens = shards.open_shards(folder, manifest, hashed=0)  # `verify` does it, shard by shard
    tokenizer, problems = _tokenizer(folder, manifest)
    _print(describe(folder, manifest))
    for number, (start, stop) in enumerate(
        _first_documents(tokens, manifest.end_of_text, shown), 1
    ):
        _print(f"\ndocument {number}, {progress.counted(stop - start, 'token')}:")
        _print(_shortened(tokens[start:stop], tokenizer))

    if verify:
        with progress.bar(len(manifest.shards), f"{split}: sha256", "shards") as bar:
            problems += [
                f"{name}: its content is not what was prepared"
                for name in shards.verify(folder, manifest, bar.update)
            ]
    first = min(len(tokens), manifest.shards[0].tokens + 1)
    stop = len(tokens) if verify else first
    with progress.bar(stop, f"{split}: documents", "tokens") as bar:
        lengths = document_lengths(tokens, manifest, stop, bar.update)
    if verify and len(lengths) != manifest.documents:
        there = progress.counted(len(lengths), "document")
        problems.append(f"there are {there}, the manifest says {manifest.documents:,}")
    where = "" if verify else ", in the first shard"
    _print(f"\ntokens per document, end of text included{where}:")
    _print(histogram(lengths))
    if verify:
        damage = "\n".join(f"DAMAGED: {problem}" for problem in problems)
        _print(damage or f"{split}: every shard is as it was prepared")
    _print("")
    return problems


def _print(text: str) -> None:
    """Prints at once, and what the terminal's encoding lacks as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def describe(folder: str, manifest: shards.Manifest) -> str:
    """A manifest in words."""
    size = progress.sized(manifest.tokens * np.dtype(manifest.dtype).itemsize)
    name = manifest.end_of_text_token
    end = f"{manifest.end_of_text} ({name})" if name else manifest.end_of_text
    damaged = ", ".join(f"{count:,} {kind}" for kind, count in manifest.damaged.items())
    lines = [
        f"{folder}, {manifest.split}: {progress.counted(manifest.tokens, 'token')}, {size}, "
        f"{progress.counted(len(manifest.shards), 'shard')}",
        f"  documents   {manifest.documents:,}, on average "
        f"{manifest.tokens / max(manifest.documents, 1):,.0f} tokens",
        f"  text        {manifest.bytes:,} bytes, {manifest.bytes / manifest.tokens:.3f} per token",
        f"  tokenizer   {manifest.tokenizer!r}, {manifest.vocab_size:,} ids, {end} ends a text; "
        f"sha256 {manifest.tokenizer_hash[:12]}...",
        f"  source      {manifest.source}, {progress.counted(len(manifest.inputs), 'file')}",
        f"  left out    {damaged or 'nothing'}",
    ]
    if manifest.inputs:
        first, last = manifest.inputs[0].file, manifest.inputs[-1].file
        lines.append(f"  order       {first} ... {last}")
    if limit := manifest.request.get("max_tokens"):
        lines.append(f"  limit       ended with the document that reached {limit:,} tokens")
    return "\n".join(lines)


def document_lengths(
    tokens: shards.ShardedTokens,
    manifest: shards.Manifest,
    stop: int,
    progress: Callable[[int], object] = lambda tokens: None,
) -> np.ndarray:
    """Tokens of each document among the first `stop` tokens, its end-of-text token included.

    `progress` is told how many tokens were read since the last call.
    """
    ends = [np.zeros(1, np.int64)]
    for start in range(0, stop, READ):
        part = tokens[start : min(start + READ, stop)]
        ends.append(np.flatnonzero(part == manifest.end_of_text) + start)
        progress(len(part))
    return np.diff(np.concatenate(ends)[1:])


def histogram(lengths: np.ndarray) -> str:
    """Lengths in classes of powers of two: how many documents, their share of all tokens, a bar of
    that share.
    """
    if not len(lengths):
        return "  no document"
    classes = np.frexp(lengths.astype(float))[1] - 1  # 2**k <= length < 2**(k+1)
    lines = []
    for k in range(classes.min(), classes.max() + 1):
        chosen = lengths[classes == k]
        share = chosen.sum() / lengths.sum()
        lines.append(
            f"  {1 << k:>11,}-{(2 << k) - 1:<11,} {len(chosen):>12,}  {share:6.1%} "
            f"{'#' * round(BAR * share)}"
        )
    return "\n".join([f"  {'length':^23} {'documents':>12}  tokens", *lines])


def _tokenizer(folder: str, manifest: shards.Manifest) -> tuple[Tokenizer | None, list[str]]:
    path = pathlib.Path(folder) / TOKENIZER
    name = "byte" if manifest.tokenizer_hash == "byte" else str(path)
    if name != "byte" and not path.exists():
        return None, [f"{path} is missing"]
    tokenizer = load_tokenizer(name)
    return tokenizer, [] if tokenizer.hash == manifest.tokenizer_hash else [
        f"{path} is not the tokenizer of the manifest"
    ]


def _first_documents(
    tokens: shards.ShardedTokens, end_of_text: int, count: int
) -> Iterator[tuple[int, int]]:
    """Start and end of the first documents, end of text excluded."""
    begin, start = 1, 1
    while count and start < len(tokens):
        for end in np.flatnonzero(tokens[start : start + READ] == end_of_text)[:count] + start:
            yield begin, int(end)
            begin, count = int(end) + 1, count - 1
        start += READ


def _shortened(ids: np.ndarray, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return str(ids)
    text = tokenizer.decode(ids)
    if len(text) > 2 * SHOWN:
        more = len(text) - 2 * SHOWN
        text = f"{text[:SHOWN]}\n[... {more:,} characters ...]\n{text[-SHOWN:]}"
    return command_line.printable(text)


if __name__ == "__main__":
    sys.exit(main())
