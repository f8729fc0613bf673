"""Times of inference of models of several sizes, for the model that `python -m
xlstm_jax.analysis.scaling inference` fits: a row for each prompt that is read, to its first token,
and, after the shortest and the longest prompt, for a step that writes a token to all texts of each
batch.

    python -m benchmarks.inference_times [--output=docs/results/inference.jsonl] [--rounds=15]
        [--models=cpu-llama-64x3,...] [--prompts=128,256,512,1024,2048,4096] [--batches=1,4,16]

Models are variants of configs/scaling.py, with random weights. Everything is compiled and run once
first; then all rows are timed in turns, in an order that changes, so that what else the machine
does falls on all of them alike; a row has the median of its rounds. A quiet machine: minutes.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import initial_params, seconds
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.analysis.scaling.inference import FIRST_TOKEN, TOKEN
from xlstm_jax.config import load
from xlstm_jax.generation import GREEDY, decode, session
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.models import build_model
from xlstm_jax.models.backbone import growing_mixers

FILE = "configs/scaling.py"
LABELS = {"xlstm_1_0": "xLSTM[1:0]", "xlstm_7b": "xLSTM", "llama": "Llama"}
MODELS = (
    "cpu-xlstm_1_0-64x4", "cpu-xlstm_1_0-128x8", "cpu-xlstm_1_0-256x10",
    "cpu-llama-64x3", "cpu-llama-128x4", "cpu-llama-256x5",
)  # fmt: skip
PROMPTS, BATCHES, ROUNDS = (128, 256, 512, 1024, 2048, 4096), (1, 4, 16), 15
WRITTEN = 16  # tokens of one timed call of steps
SPACE = 2 * WRITTEN  # of a batch's texts behind their prompts


class Case(NamedTuple):
    """A row that is to be timed: everything but its seconds, and what is run."""

    row: dict[str, Any]
    run: Callable[[], float]


def cases(variant: str, prompts: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """What is timed of a model: a first token after each prompt, and steps of each batch after the
    shortest and the longest one.
    """
    config = load(f"{FILE}:{variant}", {}).model
    model = build_model(config)
    params = initial_params(model)
    weights = cast_weights(params, config)
    about = {
        "model": LABELS[variant.split("-")[1]],
        "config": f"{pathlib.PurePath(FILE).name}:{variant}",
        "params": count_parameters(params),
    }
    rng = np.random.default_rng(0)

    def read(tokens: list[list[int]]) -> session.Session:
        length = len(tokens[0]) + SPACE
        return session.read(model, weights, tokens, cache_length=length)

    def write(start: session.Session, count: int) -> Any:
        batch = len(start.position)
        return decode(
            model, weights, start, row_keys(range(batch)), jnp.zeros(batch, bool), count,
            space=WRITTEN, sampling=GREEDY,
        )  # fmt: skip

    def texts(batch: int, length: int) -> list[list[int]]:
        return rng.integers(0, config.vocab_size, (batch, length)).tolist()

    found = []
    for length in prompts:
        tokens = texts(1, length)
        row = {"kind": FIRST_TOKEN, **about, "batch": 1, "prefill": length}
        found.append(
            Case(
                {**row, "flops": prompt_flops(model, length)},
                lambda tokens=tokens: seconds(
                    lambda: jax.block_until_ready(write(read(tokens), 1))
                ),
            )
        )
    for length, batch in itertools.product(sorted({min(prompts), max(prompts)}), batches):
        start = jax.block_until_ready(read(texts(batch, length)))
        row = {"kind": TOKEN, **about, "batch": batch, "prefill": length}
        found.append(
            Case(
                {**row, "bytes": step_bytes(config, weights, start)},
                lambda start=start: (
                    seconds(lambda: jax.block_until_ready(write(start, WRITTEN))) / WRITTEN
                ),
            )
        )
    return found


def prompt_flops(model: Any, length: int) -> float:
    """Of reading a prompt: all blocks for every token, the vocabulary projection for the last."""
    head = 2 * model.config.dim * model.config.vocab_size
    return length * (model.flops(length) - head) + head


def step_bytes(config: Any, weights: Any, start: session.Session) -> float:
    """That a step moves: the weights once, but of the embedding a row for each text; the states
    read and written, or, of memories that grow with the text, read with their free places.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    embedding = jax.tree.leaves(weights["embedding"])[0]
    size -= (embedding.shape[0] - len(start.position)) * embedding[0].nbytes
    states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start.state))
    return float(size + states * (1 if growing_mixers(config) else 2))


def measure(found: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """The rows with the medians of their times."""
    times: list[list[float]] = [[] for _ in found]
    for case in found:  # compiles
        case.run()
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for number in rng.permutation(len(found)):
            times[number].append(found[number].run())
    machine = {
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }
    return [
        {**case.row, "seconds": statistics.median(own), **machine}
        for case, own in zip(found, times, strict=True)
    ]


def main() -> None:
    def counts(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default="docs/results/inference.jsonl")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--prompts", type=counts, default=PROMPTS)
    parser.add_argument("--batches", type=counts, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    found = []
    for variant in given.models.split(","):
        print(f"{variant}: compiling", flush=True)
        found += cases(variant, given.prompts, given.batches)
    print(f"{len(found)} rows, {given.rounds} rounds", flush=True)
    rows = measure(found, given.rounds)
    for row in rows:
        print(
            f"{row['model']} {row['params']:,}: {row['kind']}, prompt {row['prefill']:,}, batch "
            f"{row['batch']}: {1e3 * row['seconds']:.3f} ms"
        )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = given.output.with_name(f"{given.output.name}.tmp")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unfinished.replace(given.output)
    print(given.output)


if __name__ == "__main__":
    sys.exit(main())
