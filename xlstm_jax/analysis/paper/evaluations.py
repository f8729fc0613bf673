"""Folders of eval.py as rows: what a trained model reached, and at which scale."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xlstm_jax.analysis.paper.values import PALOMA_SOURCES, TASK_COLUMNS, rows_of
from xlstm_jax.errors import UserError

FILE = "docs/results/evaluations.jsonl"
NEAR = 0.02  # of the paper's number of parameters, and of its tokens: the same size, as long
PAPERS_TOKENS = 600_000 * 256 * 2048  # of tables 3, 4 and 9
# the results.json of a suite -> columns of the paper's tables
TASKS = {name: column for column, name in TASK_COLUMNS.items() if name != "average"}


def rows_of_folder(model: str, folder: pathlib.Path, sizes: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of one folder of results, one for each suite that the paper has too.

    Args:
        model: the paper's name of it, as xLSTM[1:0].
        sizes: of the paper's tables.

    Raises:
        UserError: it holds no results.
    """
    path = folder / "results.json"
    try:
        suites = json.loads(path.read_text())["suites"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--evaluations: {str(path)!r} is no file of results; give a folder that eval.py wrote "
            "to, such as RUN/eval/600000"
        ) from None
    readers = {
        "perplexity": _perplexity,
        "extrapolation": _extrapolation,
        "downstream": _downstream,
        "paloma": _paloma,
    }
    found = []
    for suite, entry in suites.items():
        reader = readers.get(suite.partition("/")[0])
        values = reader(entry) if reader else None
        if not values:
            continue
        about = entry["about"]
        parameters = int(re.search(r"([\d,]+) parameters", about["model"])[1].replace(",", ""))
        tokens, data = _trained_on(folder, about["step"])
        size = next((size for size in sizes if _is_of(model, size, parameters)), None)
        whole = "slimpajama" in data.lower() and tokens > (1 - NEAR) * PAPERS_TOKENS
        found.append(
            {
                "model": model,
                "size": size,
                "suite": suite,
                "values": values,
                "parameters": parameters,
                "tokens": tokens,
                "data": data,
                "reduced": size is None or not whole or entry.get("limit") is not None,
                "devices": about["devices"],
            }
        )
    if not found:
        raise UserError(
            f"--evaluations: {str(path)!r} has no suite that the paper has; there are "
            f"{', '.join(suites)}"
        )
    return found


def add(root: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to the file of evaluations, in place of those of the same model, scale, suite."""
    path = root / FILE

    def key(row: Mapping[str, Any]) -> tuple:
        return row["model"], row["parameters"], row["tokens"], row["suite"]

    there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = {key(row): row for row in [*there, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept.values()))
    unfinished.replace(path)


def _is_of(model: str, size: str, parameters: int) -> bool:
    row = rows_of("table3_300B", size).get(model)
    return row is not None and abs(parameters / (1e6 * row["params_M"]) - 1) < NEAR


def _trained_on(folder: pathlib.Path, step: int) -> tuple[int | None, str]:
    """How many tokens the run had read, and of what; (None, "") where the folder does not lie in a
    run's.
    """
    path = folder.parent.parent / "config.json"
    try:
        data = json.loads(path.read_text())["data"]
        name = "/".join(pathlib.Path(data["path"]).parts[-2:])  # of no one machine
        return step * data["batch_size"] * data["context_length"], name
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _perplexity(entry: Mapping[str, Any]) -> dict[str, float]:
    return {"perplexity": entry["perplexity"]} if "perplexity" in entry else {}


def _extrapolation(entry: Mapping[str, Any]) -> dict[str, float]:
    return {f"{curve['context']}": curve["perplexity"] for curve in entry["contexts"]}


def _downstream(entry: Mapping[str, Any]) -> dict[str, float]:
    """By the paper's columns; accuracies in percent, as there."""
    found = {}
    for name, column in TASKS.items():
        task, _, kind = name.partition(" ")
        metric = "perplexity" if kind else "acc_norm" if column.endswith("norm") else "acc"
        value = entry["tasks"].get(task, {}).get(f"{metric},none")
        if value is not None:
            found[column] = value if kind else 100 * value
    if entry.get("paper_average") is not None:
        found["average_acc"] = entry["paper_average"]
    return found


def _paloma(entry: Mapping[str, Any]) -> dict[str, float]:
    names = {folder: name for name, folder in PALOMA_SOURCES.items()}
    return {
        names[domain["source"]]: domain["perplexity"]
        for domain in entry["sources"]
        if domain["source"] in names
    }
