"""docs/comparison.md and its figures, from the rows of `benchmarks.compare` alone."""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from xlstm_jax.analysis import figure_style

Row = Mapping[str, Any]

TITLE = "# The models of the paper, trained here"
# From this line on the text is a person's and is kept.
OWN_WORDS = "## What we make of it"
TO_BE_WRITTEN = "To be written: which of the paper's orderings hold, which do not, and why."
SMOOTHED_OVER = 2  # training events on each side


def write(rows: Sequence[Row], output: pathlib.Path, jsonl: pathlib.Path) -> None:
    """Writes the rows, the table and the figures; what a person wrote below the table stays."""
    rows = [finite(row) for row in rows]
    jsonl.parent.mkdir(parents=True, exist_ok=True)
    _replace(jsonl, "".join(json.dumps(row) + "\n" for row in rows))
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = {"curves": curves(rows), "speed": against_speed(rows)}
    names = {name: f"{output.stem}_{name}.png" for name in figures}
    for name, figure in figures.items():
        figure_style.save(figure, output.with_name(names[name]), dpi=120)
    there = output.read_text() if output.exists() else ""
    _, heading, words = there.partition(OWN_WORDS)
    own = heading + words if heading else f"{OWN_WORDS}\n\n{TO_BE_WRITTEN}\n"
    _replace(output, f"{markdown(rows, names)}\n{own}")


def markdown(rows: Sequence[Row], figures: Mapping[str, str]) -> str:
    """The text above what a person writes."""
    machine = rows[0]["machine"]
    where = "the test text" if rows[0]["set"] != "validation" else "the held-out text"
    chosen = (
        "Learning rates are chosen on the held-out text, and another one is shown."
        if rows[0]["set"] != "validation"
        else "The learning rate is chosen on the text that is shown, as no test text was given."
    )
    head = (
        f"One stack, one trainer, one text, {rows[0]['tokens']:,} tokens for every model (data "
        f"`{rows[0]['data']}`, tokenizer `{rows[0]['tokenizer']}`), D 128, written by "
        f"`python -m benchmarks.compare`. Perplexity is per token of {where}. {chosen} Training "
        "is the median over a run of 40 steps of its own, decoding is one text. "
        f"{machine['devices']}, {machine['cpus']} CPU cores, jax {machine['jax']}, "
        f"{machine['date']}."
    )
    papers = (
        "The last column is **not ours**: it is what the paper printed (2405.04517, tables 1, 2 "
        "and 8) for models of about 400 million parameters after 15 billion tokens of SlimPajama. "
        "Compare orders, not numbers."
    )
    images = (
        f"![training loss against tokens]({figures['curves']})\n\n"
        f"![perplexity against tokens/s]({figures['speed']})"
    )
    return "\n\n".join([TITLE, head, table(rows), papers, orders(rows), images]) + "\n"


def table(rows: Sequence[Row]) -> str:
    """A line for each row."""
    lines = [
        "| model | perplexity | parameters | without embeddings | learning rate (perplexity with "
        "the other) | training, tokens/s | decoding, tokens/s | *the paper's, 400M parameters, "
        "SlimPajama* |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        best = f"{row['learning_rate']:g}"
        others = [
            f"{float(rate):g}: {_number(value, '.3f', 'diverged')}"
            for rate, value in row["perplexities"].items()
            if float(rate) != row["learning_rate"]
        ]
        cells = [
            row["model"],
            _number(row["perplexity"], ".3f", "diverged"),
            _number(row["parameters"], ","),
            _number(row["without_embeddings"], ","),
            f"{best} ({', '.join(others)})" if others else best,
            _number(row["training"], ",.0f"),
            _number(row["decoding"], ",.0f"),
            f"*{_number(row['paper_perplexity'], '.2f', 'not a number')}*",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def orders(rows: Sequence[Row]) -> str:
    """How many pairs of models stand in the paper's order, and for each model with how many others.

    Models whose printed perplexities are equal, and those that diverged, make no pair.
    """
    held: dict[str, list[bool]] = {row["model"]: [] for row in rows}
    for a, b in itertools.combinations(rows, 2):
        ours = _difference(a["perplexity"], b["perplexity"])
        papers = _difference(a["paper_perplexity"], b["paper_perplexity"])
        if ours is None or not papers:
            continue
        for row in (a, b):
            held[row["model"]].append((ours < 0) == (papers < 0))
    pairs = sum(map(len, held.values())) // 2
    if not pairs:
        return "There is no pair of models to compare yet."
    kept = sum(map(sum, held.values())) // 2
    each = ", ".join(f"{name} {sum(own)} of {len(own)}" for name, own in held.items() if own)
    return f"Of {pairs} pairs of models {kept} stand in the paper's order: {each}."


def curves(rows: Sequence[Row]) -> Figure:
    """Training loss against tokens, smoothed; a line for each row."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        if not row["curve"]:
            continue
        tokens, losses = np.asarray(row["curve"], float).T
        axes.plot(
            tokens, _smooth(losses), **figure_style.style(number), label=row["model"], markevery=0.2
        )
    axes.set(xlabel="tokens", ylabel="training loss, nats per token", yscale="log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(figure_style.plain_numbers())
    axes.xaxis.set_major_formatter(figure_style.plain_numbers())
    figure_style.dress(axes, legend_columns=2)
    return figure


def against_speed(rows: Sequence[Row]) -> Figure:
    """Perplexity against tokens/s of training, and of decoding; a point for each row."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("training", "decoding"), strict=True):
        for number, row in enumerate(rows):
            if row[what] is None or row["perplexity"] is None:
                continue
            style = figure_style.style(number) | {"linestyle": "none"}
            axes.plot([row[what]], [row["perplexity"]], **style, label=row["model"])
        axes.set(xlabel=f"{what}, tokens/s", ylabel="perplexity")
        axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_major_formatter(figure_style.plain_numbers())
        axes.xaxis.set_minor_formatter(figure_style.plain_numbers())
        figure_style.dress(axes, legend_columns=2)
    return figure


def finite(row: Row) -> dict[str, Any]:
    """JSON has no number that is none."""
    bad = {key for key, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
    return {key: None if key in bad else value for key, value in row.items()}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means over neighbours, fewer at the ends."""
    window = range(-SMOOTHED_OVER, SMOOTHED_OVER + 1)
    at = [[n + k for k in window if 0 <= n + k < len(values)] for n in range(len(values))]
    return np.asarray([values[own].mean() for own in at])


def _number(value: float | None, form: str, missing: str = "") -> str:
    return missing if value is None else f"{value:{form}}"


def _replace(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
