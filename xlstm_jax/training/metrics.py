"""What a person sees of a run: the console line, metrics.jsonl, TensorBoard and loss.png."""

import json
import math
import pathlib
from collections.abc import Mapping

import tensorboardX
from matplotlib.figure import Figure

from xlstm_jax.errors import UserError
from xlstm_jax.installation import install
from xlstm_jax.parallel import is_first_process
from xlstm_jax.training.run_folder import RunFolder


class MetricsWriter:
    """Appends to metrics.jsonl, TensorBoard and, where a project is named, Weights & Biases; in the
    first process alone.

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
        records = [
            record for record in read_records(folder.metrics) if record["step"] <= resumed_at
        ]
        rewritten = folder.metrics.with_name("metrics.jsonl.tmp")
        rewritten.write_text("".join(json.dumps(record) + "\n" for record in records))
        rewritten.replace(folder.metrics)
        self._there = {(record["step"], record["split"]) for record in records}
        self._file = folder.metrics.open("a")
        if tensorboard:
            self._board = tensorboardX.SummaryWriter(
                str(folder.tensorboard), purge_step=resumed_at + 1
            )
        if wandb is not None:
            self._wandb = _open_wandb(folder, wandb)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        if self._silent:
            return
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, split: str, values: Mapping[str, float | int | None]) -> None:
        """One event; what is None is left out, what is no finite number is written as text ("nan")."""
        if self._silent or (step, split) in self._there:
            return
        self._there.add((step, split))
        values = {name: value for name, value in values.items() if value is not None}
        as_text = {
            name: value if math.isfinite(value) else str(value) for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, "split": split, **as_text}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)


def _open_wandb(folder: RunFolder, project: str):
    """A W&B run that a resumed training run goes on with."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"config key log.wandb is {project!r}, but wandb is not installed; run: "
            f"{install('wandb')}"
        ) from None
    name, config = folder.root.name, json.loads(folder.config.read_text())
    return wandb.init(
        project=project, name=name, id=name, resume="allow", dir=str(folder.root), config=config
    )


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


def console_line(
    step: int, steps: int, values: Mapping[str, float | None], seconds_left: float | None
) -> str:
    """One line per event; it starts with its step, so that it survives being mixed with other
    output.
    """
    rate, mfu = values.get("tokens_per_second"), values.get("mfu")
    per_device = values.get("tokens_per_second_per_device")
    return "  ".join(
        [
            f"step {step:>{len(str(steps))}}/{steps}",
            f"loss {values['loss']:.4f}",
            f"grad norm {values['grad_norm']:.2f}",
            f"lr {values['learning_rate']:.2e}",
            f"tokens/s {'n/a' if rate is None else f'{rate:,.0f}'}",
            f"per device {'n/a' if per_device is None else f'{per_device:,.0f}'}",
            f"MFU {'n/a' if mfu is None else f'{mfu:.1%}'}",
            f"time left {duration(seconds_left)}",
            f"skipped {values['skipped']}",
        ]
    )


def skipped_line(
    step: int, steps: int, values: Mapping[str, float], first_sample: int, last_sample: int
) -> str:
    """One line per step whose update was not applied."""
    return (
        f"step {step:>{len(str(steps))}}/{steps}  SKIPPED: loss {values['loss']:.4f}  grad norm "
        f"{values['grad_norm']:.2f}  "
        f"samples {first_sample} to {last_sample}  {values['skipped']} skipped so far"
    )


def duration(seconds: float | None) -> str:
    """52s, 3m 05s, 2h 07m, 4d 03h."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    whole = round(seconds)
    for unit, name, below, below_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
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
        points = [
            (record["step"], record["loss"]) for record in records if record["split"] == split
        ]
        if points:
            axes.plot(*zip(*points, strict=True), **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(folder.loss_figure, dpi=120)
