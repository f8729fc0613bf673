"""What is kept of a run's numbers: metrics.jsonl, TensorBoard and Weights & Biases."""

import collections
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary

from xlstm_jax.parallel import is_first_process
from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.callbacks import Callback, Run
from xlstm_jax.training.outlets import (
    AppendedFile,
    Outlet,
    TensorBoard,
    Trouble,
    WandB,
    curve_of,
    event_of,
    metrics_line,
    replace_file,
    tell,
)

# Numbers that a restart or a person with a question needs, and whose curves say nothing.
NO_CURVE = ("started", "tokens", "text_bytes", "skipped_in_a_row", "first_sample", "last_sample")
SHOWN = 5  # numbers of broken lines in one message


class MetricsWriter(Callback):
    """Appends to metrics.jsonl, TensorBoard and, where a project is named, Weights & Biases; in the
    first process alone. Each of them may fail at any time (`outlets`).

    A run that is resumed at step s writes everything after s again, so what a killed run wrote
    beyond s is dropped first; an event that is there already is not written twice. Each line is on
    disk when `write` returns.
    """

    def __init__(
        self, folder: RunFolder, resumed_at: int, *, tensorboard: bool, wandb: str | None = None
    ):
        self._silent = not is_first_process()
        self._board = self._wandb = None
        if self._silent:
            return
        self._metrics = _MetricsFile(folder.metrics, resumed_at)
        self._there = self._metrics.there
        self._lines = Outlet("metrics.jsonl", self._metrics.deliver)
        self._lines.put()
        config = json.loads(folder.config.read_text()) if folder.config.exists() else {}
        if tensorboard:
            self._board = Outlet(
                "TensorBoard's file", TensorBoard(folder.tensorboard, resumed_at).deliver
            )
            text = json.dumps(config, indent=2).replace("\n", "\n    ")  # a block of Markdown
            self._board.put(event_of(summary.text("config", f"    {text}"), resumed_at))
        if wandb is not None:
            self._service = WandB(folder.root, wandb, config)
            self._wandb = Outlet("the run at Weights & Biases", self._service.deliver)
            self._wandb.put()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def before_training(self, run: Run) -> None:
        self._shows = run.shows

    def after_step(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        if metrics["skipped_in_a_row"]:
            self.write(step, "skipped", metrics)
        elif self._shows(step):
            self.write(step, "train", metrics)

    def after_evaluation(self, step: int, summaries: Mapping[str, Mapping[str, float]]) -> None:
        for name, values in summaries.items():
            self.write(step, name, values)

    def before_checkpoint(self, step: int, params: Any) -> None:
        """Tries what waits once more: a run that is resumed here does not write it again."""
        if not self._silent:
            self._lines.put()

    def after_training(self, summary: Mapping[str, float]) -> None:
        """Tries what waits once more: loss.png is drawn next."""
        if not self._silent:
            self._lines.put()

    def close(self) -> None:
        """A last try of each, which says what is lost."""
        if self._silent:
            return
        for outlet in filter(None, (self._lines, self._board, self._wandb)):
            outlet.close()
        if self._wandb is not None:
            with Trouble("the run at Weights & Biases").caught():
                self._service.close()

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """One event; what is None is left out, what is no finite number becomes text ("nan")."""
        if self._silent or (step, split) in self._there:
            return
        self._there.add((step, split))
        values = {name: value for name, value in values.items() if value is not None}
        as_text = {
            name: value if math.isfinite(value) else str(value) for name, value in values.items()
        }
        self._lines.put({"step": step, "split": split, **as_text})
        curves = {
            f"{split}/{name}": value for name, value in values.items() if name not in NO_CURVE
        }
        if self._board is not None:
            points = (curve_of(name, value) for name, value in curves.items())
            self._board.put(*(event_of(point, step) for point in points))
        if self._wandb is not None:
            self._wandb.put((step, curves))

    def after_sample(self, step: int, text: str) -> None:
        """Text that the model wrote, for TensorBoard."""
        if not self._silent and self._board is not None:
            block = text.replace("\n", "\n    ")
            self._board.put(event_of(summary.text("sample", f"    {block}"), step))


class _MetricsFile:
    """metrics.jsonl of a run that goes on after a step: what lies beyond it is dropped before the
    first new line is appended.
    """

    def __init__(self, path: pathlib.Path, resumed_at: int) -> None:
        self._path, self._file = path, AppendedFile(path)
        found = path.read_bytes() if path.exists() else b""
        kept, broken, self.there = [], [], set()
        for number, line in enumerate(found.splitlines(keepends=True), 1):
            record = _record_of(line)
            if record is not None and record["step"] <= resumed_at:
                self.there.add((record["step"], record["split"]))
                kept.append(line.rstrip(b"\r\n") + b"\n")
            elif record is None and line.endswith(b"\n"):
                # Somebody's note or damage: it stays, and is passed over. A last line without its
                # end is what a killed run has left.
                kept.append(line)
                if line.strip():
                    broken.append(number)
        if broken:
            more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
            tell(
                f"{path}: line {', '.join(map(str, broken[:SHOWN]))}{more} can't be read and is "
                f"skipped; it stays in the file"
            )
        whole = b"".join(kept)
        self._instead = whole if whole != found else None

    def deliver(self, events: collections.deque) -> None:
        """Appends all of them and removes them from the deque."""
        if self._instead is not None:
            replace_file(self._path, self._instead)
            self._instead = None
        if events:
            self._file.append(b"".join(map(metrics_line, events)))
            events.clear()


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; lines that are none are passed over."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [record for line in lines if (record := _record_of(line)) is not None]


def _record_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are no UTF-8
        return None
    is_event = (
        isinstance(record, dict)
        and type(record.get("step")) is int
        and isinstance(record.get("split"), str)
    )
    return record if is_event else None
