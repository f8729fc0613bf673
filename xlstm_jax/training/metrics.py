"""What a person sees of a run: the console line, metrics.jsonl, TensorBoard and loss.png."""

import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping

import tensorboardX
from matplotlib.figure import Figure

from xlstm_jax.training.run_folder import RunFolder


class MetricsWriter:
    """Appends to metrics.jsonl and TensorBoard.

    A run that is resumed at step s writes everything after s again, so what a killed run wrote beyond s is dropped first; an
    event that is there already is not written twice. Each line is on disk when `write` returns.
    """

    def __init__(self, folder: RunFolder, resumed_at: int, *, tensorboard: bool):
        records = [record for record in read_records(folder.metrics) if record["step"] <= resumed_at]
        rewritten = folder.metrics.with_name("metrics.jsonl.tmp")
        rewritten.write_text("".join(json.dumps(record) + "\n" for record in records))
        rewritten.replace(folder.metrics)
        self._there = {(record["step"], record["split"]) for record in records}
        self._file = folder.metrics.open("a")
        self._board = None
        if tensorboard:
            self._board = tensorboardX.SummaryWriter(str(folder.tensorboard), purge_step=resumed_at + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """One event; what is None is left out."""
        if (step, split) in self._there:
            return
        self._there.add((step, split))
        values = {name: value for name, value in values.items() if value is not None}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)


def read_records(path: pathlib.Path) -> list[dict]:
    """The events of a metrics.jsonl; a last line that a killed run left unfinished is passed over."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Speed:
    """Tokens per second and time left, with compilation, evaluation and checkpoints left out."""

    def __init__(self, steps: int, clock: Callable[[], float] = time.perf_counter):
        self._steps, self._clock = steps, clock
        self._total_seconds, self._total_steps = 0.0, 0
        self._since: float | None = None
        self._tokens, self._done = 0, 0

    def pause(self) -> None:
        """Ends the window; the next step that is counted starts another and is not measured itself."""
        self._since = None

    def count(self, tokens: int) -> None:
        """One more step is done."""
        if self._since is None:
            self._since, self._tokens, self._done = self._clock(), 0, 0
            return
        self._tokens, self._done = self._tokens + tokens, self._done + 1

    def read(self, step: int) -> tuple[float | None, float | None]:
        """Tokens per second since the last call and seconds left after `step`; None where nothing was measured yet."""
        rate = None
        if self._since is not None and self._done:
            now = self._clock()
            seconds = max(now - self._since, 1e-9)
            rate = self._tokens / seconds
            self._total_seconds, self._total_steps = self._total_seconds + seconds, self._total_steps + self._done
            self._since, self._tokens, self._done = now, 0, 0
        left = (self._steps - step) * self._total_seconds / self._total_steps if self._total_steps else None
        return rate, left


def console_line(step: int, steps: int, values: Mapping[str, float | None], seconds_left: float | None) -> str:
    """One line per event; it starts with its step, so that it survives being mixed with other output."""
    rate, mfu = values.get("tokens_per_second"), values.get("mfu")
    return "  ".join(
        [
            f"step {step:>{len(str(steps))}}/{steps}",
            f"loss {values['loss']:.4f}",
            f"grad norm {values['grad_norm']:.2f}",
            f"lr {values['learning_rate']:.2e}",
            f"tokens/s {'n/a' if rate is None else f'{rate:,.0f}'}",
            f"MFU {'n/a' if mfu is None else f'{mfu:.1%}'}",
            f"time left {duration(seconds_left)}",
        ]
    )


def duration(seconds: float | None) -> str:
    """52s, 3m 05s, 2h 07m, 4d 03h."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    whole = round(seconds)
    for unit, name, below, below_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name} {whole % unit // below:02}{below_name}"
    return f"{whole}s"


def draw_loss(folder: RunFolder) -> None:
    """Writes loss.png from metrics.jsonl: training and held-out loss against step."""
    records = read_records(folder.metrics)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for split, style in (
        ("train", {"linewidth": 0.8, "label": "training"}),
        ("validation", {"marker": "o", "label": "held out"}),
    ):
        points = [(record["step"], record["loss"]) for record in records if record["split"] == split]
        if points:
            axes.plot(*zip(*points, strict=True), **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(folder.loss_figure, dpi=120)
