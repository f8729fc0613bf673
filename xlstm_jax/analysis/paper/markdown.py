"""Tables and paragraphs in Markdown."""

import textwrap
from collections.abc import Iterable, Sequence

from xlstm_jax.analysis.paper.values import TASK_COLUMNS

WIDTH = 100  # columns of a paragraph
# the states of a row of the paper
READY, REDUCED, HERE, OPEN = "ready", "here, reduced scale", "here", "open"
WORDS = {
    "params_M": "parameters (M)",
    "slimpajama_ppl": "SlimPajama, perplexity",
    "rank_printed": "mean rank",
    "average_acc": "average (%)",
}


def table_of(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; columns are aligned to the right where their header ends with a colon, which is left
    out.
    """
    marks = ["---:" if name.endswith(":") else "---" for name in header]
    all_lines = [[name.removesuffix(":") for name in header], marks, *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in all_lines)


def paragraphs(text: str) -> str:
    """The text with lines of at most 100 columns, but for tables, headings and images."""
    return "\n".join(
        line if line.startswith(("|", "#", "![")) else _filled(line) for line in text.split("\n")
    )


def _filled(line: str) -> str:
    indent = "  " if line.startswith("* ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def words_of(column: str) -> str:
    """A column of paper_values.json in words."""
    if column in WORDS:
        return WORDS[column]
    if column in TASK_COLUMNS:
        task = TASK_COLUMNS[column].replace("_", " ")
        return task if column.endswith("ppl") else f"{task} (%)"
    return column.replace("_", " ")


def hours_text(hours: float | None) -> str:
    """Device hours in a table; empty where they are not known."""
    if hours is None:
        return ""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"
