"""Prefill, time to first token and decode tokens/s, beside transformers' `xLSTMForCausalLM` with
the same weights where torch is there.

    python -m benchmarks.inference [--size=160m] [--repetitions=3]
    python -m benchmarks.inference --flat           # our side alone: time per token to 16,384
    python -m benchmarks.inference --long=100000    # our side alone: finite, at flat memory

Logits and greedy tokens of both sides are compared before anything is timed; then both sides
alternate, and medians are reported.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xlstm_jax.generation import GREEDY, decode, session
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.interop import folders, large
from xlstm_jax.interop.convert import import_params
from xlstm_jax.models import LanguageModel, ModelConfig, build_model

RESULT = pathlib.Path(__file__).parent / "results" / "inference.json"


def seven_b(num_heads: int, **sizes: int) -> ModelConfig:
    """A model of the blocks of xLSTM 7B."""
    mixers = {
        "mlstm_7b": {"num_heads": num_heads},
        "mlp": {"activation": "silu", "whole_first": True, "factor": 2.667},
    }
    rest = {"norm": "rms", "norm_eps": 1e-6, "logit_soft_cap": 30.0}
    return ModelConfig(blocks="mlstm_7b+mlp", mixers=mixers, **rest, **sizes)


SIZES = {
    "tiny": seven_b(2, vocab_size=300, dim=128, num_blocks=2),
    "160m": seven_b(4, vocab_size=50304, dim=768, num_blocks=12),
    "7b": seven_b(8, vocab_size=50304, dim=4096, num_blocks=32),
}
PREFILL, TO_FIRST, DECODED, BATCHES = 2048, 512, 64, (1, 16)
LAST, IN_TURN = 16_384, 16  # of --flat: the longest text, tokens of one turn


class Ours:
    """Our side: a prompt is read, tokens are written; each call waits for its result."""

    def __init__(self, model: Any, params: Any):
        self.model, self.params = model, cast_weights(params, model.config)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(
            jax.jit(lambda params, tokens: self.model.apply({"params": params}, tokens)[0])(
                self.params, tokens
            )
        )

    def read(self, tokens: np.ndarray) -> session.Session:
        return jax.block_until_ready(session.read(self.model, self.params, tokens.tolist()))

    def write(self, start: session.Session, count: int) -> tuple[session.Session, np.ndarray]:
        batch = len(start.position)
        after, tokens, _ = decode(
            self.model,
            self.params,
            start,
            row_keys(range(batch)),
            jnp.zeros(batch, bool),
            count,
            space=DECODED,
            sampling=GREEDY,
        )
        return after, np.asarray(tokens)[:, :count]


class Theirs:
    """transformers, its own generate()."""

    def __init__(self, model: Any):
        import torch

        self.model, self.torch = model, torch

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(self.torch.from_numpy(tokens)).logits.float().numpy()

    def read(self, tokens: np.ndarray) -> Any:
        """The stack and the states; of the logits only the last are computed, as on our side."""
        with self.torch.no_grad():
            output = self.model.backbone(self.torch.from_numpy(tokens), use_cache=True)
            self.model.lm_head(output[0][:, -1:])
        return output.cache_params

    def write(self, tokens: np.ndarray, count: int) -> np.ndarray:
        with self.torch.no_grad():
            output = self.model.generate(
                self.torch.from_numpy(tokens),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
            )
        return output[:, tokens.shape[1] :].numpy()


def initial_params(model: LanguageModel) -> Any:
    """Freshly initialised parameters."""
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    return nn.meta.unbox(init())["params"]


def both_sides(config: ModelConfig) -> tuple[Ours, Theirs | None]:
    """The same random weights on both sides; theirs is None without torch and transformers."""
    model = build_model(config)
    try:
        import torch
        from transformers import xLSTMConfig, xLSTMForCausalLM
    except ImportError:
        return Ours(model, initial_params(model)), None
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    theirs = xLSTMForCausalLM(xLSTMConfig(**large.export_config(config))).eval()
    # the initial output gates and gate weights are zeros, which would prove little
    with torch.no_grad():
        for parameter in theirs.parameters():
            std = 0.2 if parameter.ndim == 1 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_(std * torch.randn(parameter.shape))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        source = folders.open_source(folder)
        params = jax.tree.map(jnp.asarray, import_params(source))
    return Ours(model, params), Theirs(theirs)


def check(ours: Ours, theirs: Theirs, vocabulary: int) -> float:
    """The largest difference of logits; raises AssertionError where the sides do not compute the
    same.
    """
    tokens = np.random.default_rng(0).integers(0, vocabulary, (2, 100))
    expected, given = theirs.logits(tokens), ours.logits(tokens)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-3)
    written = theirs.write(tokens[:1], 16)
    np.testing.assert_array_equal(ours.write(ours.read(tokens[:1]), 16)[1], written)
    return float(np.abs(given - expected).max())


def alternate(runs: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, and the first turn (compilation) does not
    count.
    """
    times: dict[str, list[float]] = {side: [] for side in runs}
    for repetition in range(repetitions + 1):
        for side, run in runs.items():
            seconds = run()
            if repetition:
                times[side].append(seconds)
    return {side: statistics.median(values) for side, values in times.items()}


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(size: str, repetitions: int) -> None:
    """Prints the table and writes benchmarks/results/inference.json."""
    config = SIZES[size]
    ours, theirs = both_sides(config)
    difference = check(ours, theirs, config.vocab_size) if theirs else None
    print(
        (
            f"{size}: {sum(x.size for x in jax.tree.leaves(ours.params)):,} parameters, "
            f"{jax.devices()[0].device_kind}"
        ),
        flush=True,
    )
    if theirs:
        print(f"logits differ by at most {difference:.1e}; 16 greedy tokens agree")
    else:
        print("no torch or transformers: our side alone, unchecked")
    rng = np.random.default_rng(1)
    rows = []

    def row(name: str, unit_count: int, runs: dict[str, Callable[[], float]]) -> None:
        medians = alternate(
            {side: run for side, run in runs.items() if side == "ours" or theirs}, repetitions
        )
        rates = {side: unit_count / value for side, value in medians.items()}
        rows.append({"what": name, "seconds": medians, "per_second": rates})
        ratio = f"{rates['ours'] / rates['transformers']:.1f}" if theirs else ""
        print(
            (
                f"| {name} | {rates['ours']:,.1f} | {rates.get('transformers', float('nan')):,.1f} "
                f"| {ratio} |"
            ),
            flush=True,
        )

    print("| | ours | transformers | ratio |\n|---|---|---|---|")
    prompt = rng.integers(0, config.vocab_size, (1, PREFILL))
    row(f"prefill, T {PREFILL}, tokens/s", PREFILL, {
        "ours": lambda: seconds(lambda: ours.read(prompt)),
        "transformers": lambda: seconds(lambda: theirs.read(prompt)),
    })  # fmt: skip
    short = prompt[:, :TO_FIRST]
    row(f"first token after {TO_FIRST}, 1/s", 1, {
        "ours": lambda: seconds(lambda: ours.write(ours.read(short), 1)),
        "transformers": lambda: seconds(lambda: theirs.write(short, 1)),
    })  # fmt: skip
    for batch in BATCHES:
        start = rng.integers(0, config.vocab_size, (batch, 16))
        read = ours.read(start)
        row(f"decode, batch {batch}, tokens/s", batch * (DECODED - 1), {
            "ours": lambda read=read: seconds(lambda: ours.write(read, DECODED - 1)),
            "transformers": lambda start=start: (  # the prompt and the first token do not count
                seconds(lambda: theirs.write(start, DECODED))
                - seconds(lambda: theirs.write(start, 1))
            ),
        })  # fmt: skip
    if theirs:
        versions = {
            "jax": jax.__version__,
            "torch": theirs.torch.__version__,
            "python": platform.python_version(),
        }
        machine = {
            "cpus": os.cpu_count(),
            "device": jax.devices()[0].device_kind,
            "date": datetime.date.today().isoformat(),
            **versions,
        }
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(
            json.dumps(
                {"machine": machine, "size": size, "largest_difference": difference, "rows": rows},
                indent=1,
            )
            + "\n"
        )


def flat(size: str, last: int, rounds: int) -> None:
    """Time per token of one text, 100 to `last` tokens long, and its slope.

    Places along the text are timed in turns, in an order that changes: what else the machine does
    then falls on all of them alike.
    """
    config = SIZES[size]
    model = build_model(config)
    ours = Ours(model, initial_params(model))
    text = np.random.default_rng(0).integers(0, config.vocab_size, (1, last))
    places = np.linspace(100, last, 8).astype(int)
    sessions, read = [], None
    for start, end in zip([0, *places[:-1]], places, strict=True):
        read = session.read(model, ours.params, text[:, start:end].tolist(), read)
        sessions.append(read)
    ours.write(sessions[0], IN_TURN)  # compiles
    times = np.zeros((rounds, len(places)))
    rng = np.random.default_rng(1)
    for turn in range(rounds):
        for place in rng.permutation(len(places)):
            times[turn, place] = (
                seconds(lambda place=place: ours.write(sessions[place], IN_TURN)) / IN_TURN
            )
    medians = np.median(times, axis=0)
    slope = np.polyfit(places, medians, 1)[0] * (last - places[0]) / medians.mean()
    # How far the slope of such a measurement is off by chance: the rounds drawn again, 200 times.
    again = [np.median(times[rng.integers(0, rounds, rounds)], axis=0) for _ in range(200)]
    error = np.std(
        [np.polyfit(places, drawn, 1)[0] * (last - places[0]) / drawn.mean() for drawn in again]
    )
    print(
        f"{size}: ms per token after {', '.join(f'{place:,}' for place in places)} tokens, medians "
        f"of {rounds}:"
    )
    print(
        f"{', '.join(f'{1e3 * median:.3f}' for median in medians)}; slope {slope:+.2%} (standard "
        f"error {error:.2%})"
    )


def long(size: str, tokens: int) -> None:
    """Writes that many tokens; raises AssertionError where something is no longer finite, and says
    how far peak memory grew.
    """
    config = SIZES[size]
    model = build_model(config)
    ours = Ours(model, initial_params(model))
    now, _ = ours.write(ours.read(np.full((1, 36), 5)), DECODED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while int(now.position[0]) < tokens:
        now, _ = ours.write(now, DECODED)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(now)), (
        "something is no longer finite"
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{size}: {int(now.position[0]):,} tokens, all finite; peak memory grew by {grown:.1f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="160m")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--long", type=int)
    arguments = parser.parse_args()
    if arguments.flat:
        flat(arguments.size, LAST, rounds=20 * arguments.repetitions)
    elif arguments.long:
        long(arguments.size, arguments.long)
    else:
        compare(arguments.size, arguments.repetitions)


if __name__ == "__main__":
    sys.exit(main())
