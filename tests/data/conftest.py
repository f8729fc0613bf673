"""A small byte-level BPE like GPT-2's, trained here, and a corpus that comes in every format."""

import gzip
import json
import pathlib
import random

import pytest
import tokenizers

WORDS = (
    "the cell keeps what gate lets in and it's forgetting 1997 42 größer naïve 東京都 中文 😀 "
    "don't x=3; \t \n\n  ..."
).split(" ")


def make_text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory) -> pathlib.Path:
    """A tokenizer.json; like the file of GPT-2 that people pass around, it asks for truncation,
    which must not happen.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_text(seed, 200) for seed in range(20)], trainer)
    tokenizer.enable_truncation(50)
    path = tmp_path_factory.mktemp("tokenizer") / "tiny-bpe.json"
    tokenizer.save(str(path))
    return path


def jsonl(texts, field: str = "text") -> bytes:
    return b"".join(
        json.dumps({"id": k, field: text}, ensure_ascii=k % 2 == 0).encode() + b"\n"
        for k, text in enumerate(texts)
    )


def write_documents(path: pathlib.Path, texts) -> pathlib.Path:
    """A file of documents in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.table({"text": list(texts), "id": list(range(len(texts)))}),
            path,
            row_group_size=3,
        )
    elif name.endswith(".zst"):
        import zstandard

        path.write_bytes(zstandard.compress(jsonl(texts)))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(jsonl(texts)))
    elif name.endswith(".txt"):
        path.write_bytes("".join(texts).encode())
    else:
        path.write_bytes(jsonl(texts))
    return path
