"""Rows of every kind, as the project's commands write them."""

import itertools
import json
import pathlib
import random
from typing import Any

CELLS = ("parity", "even_pairs", "majority")
MODELS = {"llama": 0.1, "xlstm_1_0": 0.2, "xlstm_0_1": 0.9}


def trained(row: str, perplexity: float | None, **more: Any) -> dict[str, Any]:
    numbers = {"perplexity": perplexity, "tokens": 512_000, "without_embeddings": 1_600_000}
    return {"row": row, "data": "stdlib", "tokenizer": "byte", **numbers, **more}


def experiment() -> list[dict[str, Any]]:
    """Two learning rates, the second of which held-out data choose, and two seeds."""
    rows = []
    for cell, model, rate, seed in itertools.product(CELLS, MODELS, (0.01, 0.001), (0, 1)):
        about = {"experiment": "formal", "preset": "small", "cell": cell, "model": model}
        about |= {"dim": 64, "learning_rate": rate, "seed": seed, "config": "0"}
        about |= {"parameters": 9000, "steps": 1500, "seconds": 1.0, "devices": "1 x cpu"}
        chosen = rate == 0.001
        test = MODELS[model] + 0.01 * seed if chosen else 0.99
        for name, metric, value in (
            ("validation/short", "accuracy", 0.9 if chosen else 0.5),
            ("validation/short", "loss", 0.5),
            ("test", "scaled_accuracy", test),
        ):
            rows.append({**about, "set": name, "metric": metric, "value": value, "n": 512})
    return rows


def evaluation(model: str, suite: str, values: dict[str, float], **more: Any) -> dict[str, Any]:
    about = {"size": None, "parameters": 400_000, "tokens": 1_000_000, "data": "stdlib"}
    about |= {"reduced": True, "devices": "1 x cpu"}
    return {"model": model, "suite": suite, "values": values, **about, **more}


def series() -> list[dict[str, Any]]:
    return [
        {"model": model, "params": size, "tokens": budget / size, "loss": 1.7 - 1e-7 * size,
         "budget": budget}
        for model in ("xLSTM[1:0]", "Llama") for budget in (3e12, 1e13) for size in (1e5, 3e5, 1e6)
    ]  # fmt: skip


def inference() -> list[dict[str, Any]]:
    random.seed(0)
    return [
        {"kind": kind, "model": "xLSTM[1:0]", "params": 1e6, "batch": batch, "prefill": length,
         "seconds": 1e-3 + work / 1e9, key: work, "device": "cpu"}
        for kind, key in (("first_token", "flops"), ("token", "bytes"))
        for batch in (1, 4) for length in (128, 1024)
        for work in (random.uniform(1e5, 1e7) * batch,)
    ]  # fmt: skip


SPEED = {"config": "xlstm_350m.py:1_0-15b", "device": "H100", "tokens_per_second": 67_000,
         "how": "modelled"}  # fmt: skip


def write(root: pathlib.Path) -> pathlib.Path:
    """A clone's folders with rows of every kind."""
    results = root / "docs" / "results"
    results.mkdir(parents=True)
    (root / "benchmarks" / "results").mkdir(parents=True)
    for path, rows in {
        root / "benchmarks" / "results" / "comparison.jsonl": [
            trained("llama", 6.5), trained("xlstm_1_0", 4.25), trained("gates_none_inf", None),
        ],
        results / "formal.jsonl": experiment(),
        results / "evaluations.jsonl": [
            evaluation("xLSTM[1:0]", "perplexity", {"perplexity": 5.5}),
            evaluation("xLSTM[1:0]", "extrapolation", {"256": 5.5, "512": 5.25}),
            evaluation("Llama", "paloma", {"C4": 24.5, "Gab": 56.5}, size="125M", reduced=False,
                       parameters=162_200_000, tokens=314_572_800_000, data="slimpajama-gpt2"),
        ],
        results / "runs.jsonl": series(),
        results / "inference.jsonl": inference(),
        results / "speeds.jsonl": [SPEED],
        results / "grids.jsonl": [
            {"grid": "formal.py", "model": "llama", "step_ms": 0.6, "hours": 1.25},
            *({"grid": "nns.py", "model": model, "step_ms": 1, "hours": 4}
              for model in ("llama", "lstm", "xlstm_0_1")),
        ],
    }.items():  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
