"""PALOMA (Magnusson et al. 2023): perplexity per source and per domain, over
`<source>/val/*.jsonl.gz` with a "text" in each line.

Documents are cut into windows as the paper's evaluation does: full windows without overlap, the
last one filled up with earlier tokens of which only the new ones are scored; the first token
follows an end-of-text token.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

from xlstm_jax import progress
from xlstm_jax.data.documents import KINDS, Damage, read_documents
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.scoring import Pair, Scorer

DOCUMENTS_AT_ONCE = 256
WINDOW = 2048  # tokens, as in the paper


@dataclasses.dataclass
class Domain:
    """Sums over one file."""

    source: str
    file: str
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    words: int = 0
    documents: int = 0

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return math.exp(min(700.0, self.nats / self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes

    def values(self) -> dict[str, float | int | str]:
        """The numbers for JSON."""
        return {
            **dataclasses.asdict(self),
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


def files_of(folder: str, split: str = "val") -> list[pathlib.Path]:
    """The data set's files, sorted; raises `UserError` where there are none."""
    files = sorted(pathlib.Path(folder).glob(f"*/{split}/*.jsonl.gz"))
    if not files:
        raise UserError(
            f"folder {folder!r} has no files SOURCE/{split}/*.jsonl.gz; download allenai/paloma "
            f"(its licence has to be accepted on the hub)"
        )
    return files


def check_paloma(folder: str, max_documents: int | None = None) -> None:
    """Reads all files through, so that hours of scoring do not end at a damaged one.

    Raises:
        UserError: no such files, or a line that is no document.
    """
    files = files_of(folder)
    with progress.bar(len(files), "paloma: looking through", "files") as bar:
        for file in files:
            for _ in _texts(file, max_documents):
                pass
            bar.update(1)


def evaluate_paloma(
    scorer: Scorer,
    tokenizer: Tokenizer,
    folder: str,
    window: int = WINDOW,
    split: str = "val",
    max_documents: int | None = None,
    on_file: Callable[[int], object] = lambda size: None,
) -> list[Domain]:
    """Every file of every source below `folder`; `max_documents` of each file. `on_file` is called
    with the bytes on disk of each file when it is scored.

    Raises:
        UserError: no such files, or a line that is no document.
    """
    domains = []
    for file in files_of(folder, split):
        domain = Domain(file.parent.parent.name, file.name.removesuffix(".jsonl.gz"))
        for texts in _batches(_texts(file, max_documents)):
            _add(domain, scorer, tokenizer, texts, window)
        if domain.tokens:
            domains.append(domain)
        on_file(file.stat().st_size)
    if not domains:
        raise UserError(f"the files below {folder!r} hold no text")
    return domains


def by_source(domains: Sequence[Domain]) -> list[Domain]:
    """A source's perplexity weighs every token alike, whichever its file (equation 1 of the PALOMA
    paper).
    """
    sums: dict[str, Domain] = {}
    for domain in domains:
        total = sums.setdefault(domain.source, Domain(domain.source, "all"))
        for name in ("nats", "tokens", "bytes", "words", "documents"):
            setattr(total, name, getattr(total, name) + getattr(domain, name))
    return list(sums.values())


def rolling_windows(tokens: Sequence[int], prefix: int, window: int) -> list[Pair]:
    """(context, tokens to score) pairs of a document; every token is scored once, no input is
    longer than `window`.
    """
    pairs = []
    for start in range(0, len(tokens), window):
        end = min(start + window, len(tokens))
        if start == 0:
            context = [prefix]
        else:
            context = tokens[max(0, end - window - 1) : start]
        pairs.append((list(context), list(tokens[start:end])))
    return pairs


def _add(
    domain: Domain, scorer: Scorer, tokenizer: Tokenizer, texts: list[str], window: int
) -> None:
    pairs = [
        pair
        for text in texts
        for pair in rolling_windows(tokenizer.encode(text).tolist(), tokenizer.end_of_text, window)
    ]
    domain.nats -= sum(score.log_probability for score in scorer.score(pairs))
    domain.tokens += sum(len(scored) for _, scored in pairs)
    domain.bytes += sum(len(text.encode()) for text in texts)
    domain.words += sum(len(text.split()) for text in texts)
    domain.documents += len(texts)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == DOCUMENTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _texts(file: pathlib.Path, max_documents: int | None) -> Iterator[str]:
    """The texts of a file; of the first `max_documents` lines where that is given."""
    parts: list[str] = []
    documents = 0

    def on_damage(damage: Damage) -> None:
        nonlocal documents
        if damage.kind != "empty":  # nothing to score
            raise UserError(
                f"{file} can't be read as gzipped JSON lines with a text each: line {damage.line}: "
                f"{KINDS[damage.kind]} {damage.detail}".rstrip()
            )
        documents += 1

    for piece in read_documents(file, "text", False, on_damage):
        if max_documents is not None and documents >= max_documents:
            return
        parts.append(piece.text)
        if piece.last:
            yield "".join(parts)
            parts, documents = [], documents + 1
