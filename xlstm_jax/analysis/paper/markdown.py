"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table_of(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; columns are aligned to the right where their header ends with a colon, which is left
    out.
    """
    marks = ["---:" if name.endswith(":") else "---" for name in header]
    all_lines = [[name.removesuffix(":") for name in header], marks, *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in all_lines)
