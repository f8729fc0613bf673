"""The token stream behind `data.path`: text in memory, prepared shards, a mixture of several, or
random tokens for speed tests.
"""

import dataclasses
import gzip
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from xlstm_jax.data import corpus, shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.streams import SYNTHETIC_DOCUMENT, JoinedTokens, SyntheticTokens, woven
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.progress import counted

SYNTHETIC = "synthetic"
SYNTHETIC_TOKENS = {"train": 1 << 36, "validation": 1 << 16}


@dataclasses.dataclass(frozen=True)
class TokenSource:
    """The token stream of a split: an end-of-text token, then documents, each followed by one.

    Attributes:
        tokens: anything with a length and slices: an array, or `ShardedTokens`.
        bytes: of the documents as UTF-8; 0 where there is no text.
        text: those bytes, where they are at hand.
        description: lines for the terminal.
        fingerprint: a number that other tokens, or others in their order, change.
        record: what the tokens are, for the record of a run.
        parts: of a mixture, with their weights; `tokens` then is one after the other.
    """

    tokens: Any
    tokenizer: Tokenizer
    documents: int
    bytes: int
    text: bytes | None
    description: tuple[str, ...]
    fingerprint: int = 0
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[tuple[float, "TokenSource"], ...] = ()

    @property
    def end_of_text(self) -> int:
        """Id of the token between documents."""
        return self.tokenizer.end_of_text

    def gzip_bits_per_byte(self, first_bytes: int | None = None) -> float | None:
        """Size of the documents, or of their first bytes, after `gzip -9`, bits per byte; None
        where the text is not at hand.
        """
        if self.text is None:
            return None
        text = self.text[:first_bytes]
        return 8 * len(gzip.compress(text, 9)) / len(text)


def open_split(config: DataConfig, split: str, vocab_size: int) -> TokenSource:
    """The tokens of "train" or "validation".

    Text is tokenized in memory; a folder with manifests is read from disk. `vocab_size` is the
    model's.

    Raises:
        UserError: data or tokenizer are missing, empty, no text, damaged, or have ids that the
            model lacks.
    """
    held_out = split == "validation" and config.validation_path
    mixture = parse_mixture(config.validation_path if held_out else config.path)
    if len(mixture) == 1:
        source = _open(config, mixture[0][0], split, vocab_size)
        limited = config.max_tokens is not None and split == "train"
        return _limited(source, config.max_tokens) if limited else source
    if split == "validation":
        try:
            return _mixed(_parts(config, mixture, split, vocab_size), weave=True)
        except UserError as error:
            raise UserError(
                f"of the mixture {config.path!r} the parts' own held-out texts are taken, which "
                f"can't be had: {error}. Or give data.validation_path a held-out set"
            ) from None
    if config.max_tokens is not None:
        raise UserError(
            f"config key data.max_tokens is {config.max_tokens:,}, which can't limit the mixture "
            f"{config.path!r}; leave it unset, and prepare the parts with --max-tokens"
        )
    return _mixed(_parts(config, mixture, split, vocab_size), weave=False)


def open_named_split(config: DataConfig, name: str, vocab_size: int) -> TokenSource:
    """The tokens of "train", of "validation", or of one of `data.validation_sets`.

    Raises:
        UserError: as `open_split`, or there is no set of that name.
    """
    sets = validation_sets(config)
    if name in ("train", "validation"):
        return open_split(config, name, vocab_size)
    if name not in sets:
        raise UserError(
            f"there is no split {name!r}; there are {', '.join(('train', 'validation', *sets))}"
        )
    return open_split(
        dataclasses.replace(config, validation_path=sets[name]), "validation", vocab_size
    )


def open_validation_sets(config: DataConfig, vocab_size: int) -> dict[str, TokenSource]:
    """The further held-out sets of `data.validation_sets`, by name.

    Raises:
        UserError: as `open_split` and `validation_sets`.
    """
    return {name: open_named_split(config, name, vocab_size) for name in validation_sets(config)}


def validation_sets(config: DataConfig) -> dict[str, str]:
    """The paths of `data.validation_sets` by name.

    Raises:
        UserError: the value is not of the form "name=path,name=path", or a name is taken.
    """
    sets: dict[str, str] = {}
    for entry in config.validation_sets.split(",") if config.validation_sets else ():
        name, _, path = entry.partition("=")
        if not (name and path) or name in (*sets, "train", "validation"):
            raise UserError(
                f"config key data.validation_sets is {config.validation_sets!r}; it must be "
                f'"name=path,name=path", each name once, and neither train nor validation'
            )
        sets[name] = path
    return sets


def parse_mixture(path: str) -> list[tuple[str, float]]:
    """ "a:0.7,b:0.3" -> [("a", 0.7), ("b", 0.3)]; a path without weights -> [(path, 1.0)].

    Raises:
        UserError: weights are missing or not positive.
    """
    parts = [entry.rpartition(":") for entry in path.split(",")]
    if "," not in path and not _is_number(parts[0][2]) or pathlib.Path(path).exists():
        return [(path, 1.0)]
    if not all(
        name and _is_number(weight) and 0 < float(weight) < float("inf")
        for name, _, weight in parts
    ):
        raise UserError(
            f'data path {path!r} is no mixture: each part must be "path:weight" with a weight '
            f'above 0, e.g. "a:0.7,b:0.3"'
        )
    return [(name, float(weight)) for name, _, weight in parts]


def _parts(
    config: DataConfig, mixture: list[tuple[str, float]], split: str, vocab_size: int
) -> tuple[tuple[float, TokenSource], ...]:
    return tuple((weight, _open(config, path, split, vocab_size)) for path, weight in mixture)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _open(config: DataConfig, path: str, split: str, vocab_size: int) -> TokenSource:
    if path == SYNTHETIC:
        source = _synthetic(config, split)
    elif shards.is_prepared(path):
        source = _prepared(config, path, split)
    else:
        source = _text(config, path, split)
    if source.tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {source.tokenizer.name!r} has {source.tokenizer.vocab_size} ids, but "
            f"model.vocab_size is {vocab_size}; enlarge model.vocab_size to at least that"
        )
    return source


def _synthetic(config: DataConfig, split: str) -> TokenSource:
    tokenizer = load_tokenizer(config.tokenizer)
    tokens = SyntheticTokens(SYNTHETIC_TOKENS[split], tokenizer.vocab_size, tokenizer.end_of_text)
    description = f"{split}: random tokens, {tokenizer.vocab_size:,} different ones"
    return TokenSource(
        tokens,
        tokenizer,
        len(tokens) // SYNTHETIC_DOCUMENT,
        0,
        None,
        (description,),
        record={"path": SYNTHETIC},
    )


def _text(config: DataConfig, path: str, split: str) -> TokenSource:
    """Text, tokenized in memory."""
    documents, left_out = corpus.open_corpus(path)
    tokenizer = load_tokenizer(config.tokenizer)
    if not config.validation_path:
        documents = corpus.split_corpus(documents, split, config.holdout_every)
        if not documents:
            raise UserError(
                f"data path {path!r} has too little text to hold one part in "
                f"{config.holdout_every} out for {split}"
            )
    end = np.array([tokenizer.end_of_text])
    ids = tokenizer.encode_batch([document.text for document in documents], [True] * len(documents))
    text = b"".join(document.text.encode() for document in documents)
    tokens = np.concatenate([end, ids]).astype(shards.dtype_of(tokenizer.vocab_size))
    about = corpus.describe(path, documents, len(text))
    description = f"{split}: {about}, {counted(len(tokens), 'token')}"
    lines = (description, *(line for line in [corpus.describe_rest(path, left_out)] if line))
    content_hash = hashlib.sha256(tokens.tobytes()).hexdigest()
    record = {
        "path": path,
        "split": split,
        "tokens": len(tokens) - 1,
        "sha256": content_hash,
        "tokenizer_hash": tokenizer.hash,
    }
    return TokenSource(
        tokens,
        tokenizer,
        len(documents),
        len(text),
        text,
        lines,
        int(content_hash[:13], 16),
        record,
    )


def _prepared(config: DataConfig, path: str, split: str) -> TokenSource:
    """Token shards."""
    manifest = shards.read_manifest(path, split)
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.hash != manifest.tokenizer_hash:
        raise UserError(
            f"data.tokenizer {config.tokenizer!r} is not the one that {path!r} was prepared with "
            f"({manifest.tokenizer!r}, sha256 {manifest.tokenizer_hash[:12]}); point "
            f"data.tokenizer to that file, which lies in the folder as tokenizer.json"
        )
    if tokenizer.end_of_text != manifest.end_of_text:
        raise UserError(
            f"{path!r} was prepared with {manifest.end_of_text} as the token that ends a text, but "
            f"data.tokenizer {config.tokenizer!r} has {tokenizer.end_of_text}; prepare it again"
        )
    tokens = shards.open_shards(path, manifest)
    description = (
        f"{split}: {path}: {counted(manifest.documents, 'document')}, "
        f"{counted(manifest.tokens, 'token')} of {manifest.tokenizer!r}"
    )
    record = {"path": path, **dataclasses.asdict(manifest)}
    del record["inputs"]  # may be a hundred thousand files; the manifest keeps them
    return TokenSource(
        tokens,
        tokenizer,
        manifest.documents,
        manifest.bytes,
        None,
        (description,),
        manifest.fingerprint(),
        record,
    )


def _mixed(parts: tuple[tuple[float, TokenSource], ...], *, weave: bool) -> TokenSource:
    """Several sources as one: one after the other for training, which reads each part by itself;
    woven for evaluation, which reads the stream.
    """
    sources = [source for _, source in parts]
    if len({source.tokenizer.hash for source in sources}) > 1:
        raise UserError("the parts of the mixture have different tokenizers; prepare them with one")
    total = sum(weight for weight, _ in parts)
    streams, weights = [source.tokens for source in sources], [weight for weight, _ in parts]
    content = json.dumps([(weight, source.fingerprint) for weight, source in parts])
    return TokenSource(
        tokens=woven(streams, weights, sources[0].end_of_text) if weave else JoinedTokens(streams),
        tokenizer=sources[0].tokenizer,
        documents=sum(source.documents for source in sources),
        bytes=sum(source.bytes for source in sources),
        text=None,
        description=tuple(
            f"{weight / total:.1%} of {line}"
            for weight, source in parts
            for line in source.description
        ),
        fingerprint=int(hashlib.sha256(content.encode()).hexdigest()[:13], 16),
        record={"mixture": [{"weight": weight, **source.record} for weight, source in parts]},
        parts=parts,
    )


def _limited(source: TokenSource, targets: int) -> TokenSource:
    """The first `targets` tokens after the stream's first one."""
    if targets >= len(source.tokens):
        raise UserError(
            f"config key data.max_tokens is {targets:,}, but there are {len(source.tokens) - 1:,} "
            f"tokens; leave it unset, or prepare more"
        )
    record = {**source.record, "max_tokens": targets}
    if "shards" in record:
        starts = np.cumsum([0, *(shard["tokens"] for shard in record["shards"])]).tolist()
        record["shards"] = [
            {**shard, "used": min(shard["tokens"], targets - start)}
            for shard, start in zip(record["shards"], starts, strict=False)
            if start < targets
        ]
    tokens, stop = source.tokens, targets + 1
    return dataclasses.replace(
        source,
        tokens=tokens[:stop] if isinstance(tokens, np.ndarray) else JoinedTokens([tokens], stop),
        text=None,
        description=(*source.description, f"train: of these the first {counted(targets, 'token')}"),
        record=record,
    )
