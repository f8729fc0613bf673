"""Results for people and programs: `results.json`, `results.md` and figures in one folder, suite by
suite.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from xlstm_jax.evaluation import paper_values
from xlstm_jax.evaluation.extrapolation import Curve
from xlstm_jax.evaluation.speed import Timing
from xlstm_jax.models.config import ModelConfig

JSON, MARKDOWN = "results.json", "results.md"
PAPER_NOTE = "Rows of the paper: 300B tokens of SlimPajama, GPT-2 tokenizer; perplexities of other tokenizers or texts do not compare."


class Report(NamedTuple):
    """One suite's results.

    Attributes:
        header, rows: of its table, as text.
        values: for JSON.
        notes: below the table.
        figures: file name -> figure.
    """

    suite: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: dict[str, Any]
    notes: Sequence[str] = ()
    figures: dict[str, Figure] = {}

    def markdown(self) -> str:
        """A heading and the table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"## {self.suite}", table, *self.notes])


def write(folder: pathlib.Path, about: dict[str, Any], reports: Sequence[Report]) -> None:
    """Adds reports to a folder; suites that are there already and not among them stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JSON
    suites = json.loads(path.read_text())["suites"] if path.is_file() else {}
    for report in reports:
        suites[report.suite] = {**report.values, "markdown": report.markdown(), "about": about}
        for name, figure in report.figures.items():
            figure.savefig(folder / name, dpi=150)
    _replace(path, json.dumps({"suites": suites}, indent=1) + "\n")
    title = f"# {about['model']}, step {about['step']}"
    _replace(
        folder / MARKDOWN,
        "\n\n".join([title, *(suite["markdown"] for suite in suites.values())]) + "\n",
    )


def _replace(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def paper_size(config: ModelConfig) -> str:
    """The size whose rows of the paper stand beside this model's: its own, or 1.3B."""
    return paper_values.SIZES.get((config.dim, config.num_blocks), "1.3B")


def paper_rows(size: str, values: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """(label, value) of every model that the paper has of a size."""
    return [(f"paper: {model} {size}", value) for model, value in values[size].items()]


def extrapolation_figure(curves: Sequence[Curve], trained_at: int) -> Figure:
    """Left: perplexity against context, with the paper's values at 16,384; right: against the
    position in the longest window.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        [curve.context for curve in curves],
        [curve.perplexity for curve in curves],
        marker="o",
        label="this model",
    )
    for (model, value), marker in zip(paper_values.EXTRAPOLATION.items(), "sv^<>", strict=True):
        left.plot([16384], [value], marker, fillstyle="none", label=f"paper: {model} 1.3B")
    left.set(xlabel="context (tokens)", ylabel="perplexity", title="all positions of a window")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    longest = curves[-1].by_position()
    right.plot(*zip(*longest, strict=True), linewidth=0.9)
    right.set(
        xlabel="position in the window",
        ylabel="perplexity",
        title=f"windows of {curves[-1].context:,} tokens",
    )
    right.set_xscale("log", base=2)
    for axes in (left, right):
        axes.axvline(trained_at, linestyle=":", color="gray", label=f"trained at {trained_at:,}")
        axes.grid(alpha=0.3)
    left.legend(fontsize=7)
    return figure


def speed_figure(lengths: Sequence[Timing], batches: Sequence[Timing]) -> Figure:
    """The two panels of the paper's figure 9."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        [timing.tokens for timing in lengths], [timing.seconds for timing in lengths], marker="o"
    )
    left.set(xlabel="generated tokens", ylabel="seconds", title="batch 1, prompt of 16 tokens")
    good = [timing for timing in batches if timing.seconds is not None]
    right.plot(
        [timing.batch for timing in good], [timing.tokens_per_second for timing in good], marker="o"
    )
    for timing in batches:
        if timing.seconds is None:
            right.axvline(timing.batch, linestyle="--", color="red")
            right.annotate("out of memory", (timing.batch, 0), rotation=90, color="red")
    right.set(xlabel="batch", ylabel="tokens/s", title="throughput")
    right.set_xscale("log", base=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
