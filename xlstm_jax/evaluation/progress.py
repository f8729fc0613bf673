"""How far long work is, on stderr: a bar that knows the time left and goes away at its end."""

import sys

import tqdm

SILENT_SECONDS = 2  # work that is done earlier shows no bar
LINES_EVERY_SECONDS = 30  # in a log file, where each state of the bar stays as a line


def bar(total: int, what: str, unit: str) -> tqdm.tqdm:
    """A bar for `total` units; `update(count)` moves it, `with` or `close()` ends it."""
    settings = dict(
        total=total,
        desc=what,
        unit=f" {unit}",
        unit_scale=total >= 10_000,
        delay=SILENT_SECONDS,
        smoothing=0.1,
        leave=False,
    )
    if sys.stderr.isatty():
        return tqdm.tqdm(**settings, mininterval=0.5, dynamic_ncols=True, file=sys.stderr)
    line = "{desc}: {percentage:.0f}% of {total_fmt}{unit}, {rate_fmt}, time left {remaining}"
    return tqdm.tqdm(**settings, mininterval=LINES_EVERY_SECONDS, bar_format=line, file=_Lines())


class _LogBar(tqdm.tqdm):
    """A bar that its library's thread does not repeat every ten seconds."""

    monitor_interval = 0


class _Lines:
    """stderr, where what is to be written over the line before becomes a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
