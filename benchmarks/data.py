"""Speed and memory of the data pipeline: python -m benchmarks.data --tokenizer=FILE [--text=FILE]
[--folder=DIR]

Makes a corpus of 1,000 .jsonl.zst files, prepares it, reads it, and prints beside each other
* preparation and the bare `encode_batch` of the `tokenizers` library on the same text, in tokens
  per second of one core's time,
* the trainer's batches and bare memory-mapped reads, in tokens per second of wall and of processor
  time,
* memory of a process that prepares and of one that reads 10,000 batches.
Before it times anything it checks that both ways give the same tokens. The two of a pair run by
turns, so that other work on the machine falls on both. Results also go to
benchmarks/results/data.json.
"""

import dataclasses
import json
import os
import pathlib
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import tokenizers
import zstandard

from xlstm_jax import command_line
from xlstm_jax.config import load
from xlstm_jax.data import corpus, shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import READ_AHEAD, open_split, train_batches
from xlstm_jax.data.prepare import install_tokenizer, prepare_split

USAGE = __doc__
FLAGS = {
    "tokenizer": "a tokenizer.json, e.g. GPT-2's",
    "text": "where documents are drawn from; default: the standard library's source",
    "folder": "keep corpus and shards here; default: a temporary folder",
    "batches": "for the test of memory; default: 10000",
    "reader": "(the process that reads for the test of memory)",
}
FILES = 1000
TURNS = 3
READ_SECONDS = 8.0
RESULTS = pathlib.Path(__file__).parent / "results/data.json"


def make_corpus(folder: pathlib.Path, text: str) -> list[list[str]]:
    """Files with log-normal numbers of documents with log-normal lengths; returns the documents of
    each.
    """
    draw, files = random.Random(0), []
    for number in range(FILES):
        documents = []
        for _ in range(max(1, round(draw.lognormvariate(2.5, 0.8)))):
            length = round(min(draw.lognormvariate(7.3, 1.2), 400_000))  # median 1,500 characters
            start = draw.randrange(len(text))
            documents.append((text[start : start + length] or text[:length]).strip() or "empty")
        path = folder / f"chunk{number % 10}" / f"example_{number}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(
            json.dumps({"text": document, "meta": {"source": "generated"}}) + "\n"
            for document in documents
        )
        path.write_bytes(zstandard.compress(lines.encode(), 3))
        files.append(documents)
    return [files[k] for k in sorted(range(FILES), key=lambda k: (k % 10, k))]


def benchmark_preparation(
    folder: pathlib.Path, output: pathlib.Path, documents: list[str], tokenizer_file: str
) -> dict:
    """Tokens per second of processor time; each turn prepares everything and encodes everything."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    bare = tokenizers.Tokenizer.from_file(tokenizer_file)
    bare.no_truncation()
    rates = {"prepare": [], "encode_batch": []}
    tokens = 0
    for turn in range(TURNS):
        target = output if turn == 0 else output.with_name(f"{output.name}-{turn}")
        tokenizer = install_tokenizer(tokenizer_file, target)
        start = time.process_time()
        manifest = prepare_split(str(folder), "train", tokenizer, target, workers=1)
        rates["prepare"].append(manifest.tokens / (time.process_time() - start))
        start = time.process_time()
        tokens = len(documents)
        for first in range(0, len(documents), 1000):
            for encoding in bare.encode_batch(
                documents[first : first + 1000], add_special_tokens=False
            ):
                tokens += len(encoding)
        rates["encode_batch"].append(tokens / (time.process_time() - start))
        assert tokens == manifest.tokens, "preparation and encode_batch disagree"
    ratios = [
        ours / theirs for ours, theirs in zip(rates["prepare"], rates["encode_batch"], strict=True)
    ]
    return {
        "tokens": tokens,
        "documents": len(documents),
        **{
            f"{name}_tokens_per_core_second": round(statistics.median(values))
            for name, values in rates.items()
        },
        "share_of_encode_batch": round(statistics.median(ratios), 3),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def benchmark_reading(folder: pathlib.Path) -> dict:
    """The batches of configs/xlstm_1.3b.py, and the same windows read through a memory map without
    anything made of them.
    """
    config = dataclasses.replace(
        load("configs/xlstm_1.3b.py").data,
        path=str(folder),
        tokenizer=str(folder / "tokenizer.json"),
        max_tokens=None,
    )
    source = open_split(config, "train", 1 << 16)
    size = config.batch_size * config.context_length
    results = {"batch": [config.batch_size, config.context_length], "tokens": len(source.tokens)}
    reset = dataclasses.replace(config, reset_at_document=True)
    for name, settings in {
        "loader": config,
        "loader_reset_at_document": reset,
        "memory_map": None,
    }.items():
        batches = (
            _bare_batches(folder, config) if settings is None else train_batches(source, settings)
        )
        for _ in range(2 * READ_AHEAD):
            next(batches)
        wall, cpu, count = time.perf_counter(), time.process_time(), 0
        # what is read ahead at the end weighs little
        while time.perf_counter() - wall < READ_SECONDS or count < 10 * READ_AHEAD:
            next(batches)
            count += 1
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        results[name] = {
            "tokens_per_second": round(count * size / wall),
            "tokens_per_core_second": round(count * size / cpu),
        }
        del batches
    return results


def _bare_batches(folder: pathlib.Path, config: DataConfig):
    manifest = shards.read_manifest(str(folder), "train")
    maps = [
        np.memmap(folder / "train" / shard.file, manifest.dtype, "r") for shard in manifest.shards
    ]
    windows = [
        (k, start)
        for k, array in enumerate(maps)
        for start in range(0, len(array) - config.context_length, config.context_length)
    ]
    draw = random.Random(0)
    while True:
        chosen = [draw.choice(windows) for _ in range(config.batch_size)]
        yield np.stack([maps[k][start : start + config.context_length + 1] for k, start in chosen])


def read_for_memory(folder: str, batches: int) -> None:
    """Prints the resident memory in MiB after every tenth of the batches, as JSON."""
    config = DataConfig(
        path=folder, tokenizer=f"{folder}/tokenizer.json", context_length=2048, batch_size=32
    )
    iterator = train_batches(open_split(config, "train", 1 << 16), config)
    memory = []
    for number in range(1, batches + 1):
        next(iterator)
        if number % max(batches // 10, 1) == 0:
            memory.append(
                round(
                    int(pathlib.Path("/proc/self/statm").read_text().split()[1])
                    * resource.getpagesize()
                    / 2**20,
                    1,
                )
            )
    print(json.dumps(memory))


def main(argv: list[str]) -> None:
    """The command, or with --reader the process whose memory it watches."""
    flags = command_line.parse(argv, USAGE, FLAGS)
    batches = command_line.number(flags, "batches") or 10_000
    if flags["reader"].value:
        read_for_memory(flags["reader"].value, batches)
        return
    tokenizer_file = command_line.text(flags, "tokenizer", "gpt2.json")
    given = flags["text"].value
    text = (
        pathlib.Path(given).read_text()
        if given
        else "\n".join(document.text for document in corpus.read_corpus("stdlib"))
    )
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(flags["folder"].value or temporary)
        documents = sum(make_corpus(root / "corpus", text), [])
        prepared = root / "prepared"
        results = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
            f"Python {platform.python_version()}"
        }
        results["preparation"] = benchmark_preparation(
            root / "corpus", prepared, documents, tokenizer_file
        )
        results["reading"] = benchmark_reading(prepared)
        command = [
            sys.executable,
            "-m",
            "benchmarks.data",
            f"--reader={prepared}",
            f"--batches={batches}",
        ]
        memory = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
        results["reader_memory_mib"] = {"batches": batches, "each_tenth": memory}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    sys.exit(command_line.run(lambda: main(sys.argv)))
