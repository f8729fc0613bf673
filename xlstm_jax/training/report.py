"""What is told of each step: its numbers to the callbacks, a line to the terminal."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from xlstm_jax.analysis.flops import peak_flops, training_flops_per_token
from xlstm_jax.errors import Diverged
from xlstm_jax.training.callbacks import Callback, Run
from xlstm_jax.training.console import console_line, say, skipped_line
from xlstm_jax.training.step import Metrics
from xlstm_jax.training.timing import Speed, WallTime


class Report:
    """Called with every step's metrics, one step late."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        callback: Callback,
        wall_time: WallTime,
        device_kind: str,
        devices: int,
        tell: Callable[[str], None] = say,
    ) -> None:
        self._run, self._config = run, (config := run.config)
        self._callback, self._wall_time, self._devices = callback, wall_time, devices
        self._tell = tell
        self._speed = Speed(config.train.steps)
        self._tokens = config.data.batch_size * config.data.context_length
        peak = peak_flops(device_kind)
        flops = training_flops_per_token(model, config.data.context_length)
        self._share_of_peak = flops / (peak * devices) if peak else None  # per token a second

    def pause(self) -> None:
        """What follows is no training time."""
        self._speed.pause()

    def __call__(self, step: int, metrics: Metrics) -> None:
        values, steps = read_metrics(metrics), self._config.train.steps
        self._speed.count(self._tokens)
        if values["skipped_in_a_row"]:
            self._skipped(step, values)
        elif not self._run.shows(step):
            self._callback.after_step(step, values)
        else:
            rate, seconds_left = self._speed.read(step)
            share = self._share_of_peak
            values |= {
                "tokens_per_second": rate,
                "tokens_per_second_per_device": rate and rate / self._devices,
                "mfu": rate * share if rate and share else None,
            }
            self._callback.after_step(step, values | self._wall_time.values())
            self._tell(console_line(step, steps, values, seconds_left, self._devices))

    def _skipped(self, step: int, values: dict[str, Any]) -> None:
        rows, most = self._config.data.batch_size, self._config.train.max_skipped
        samples = {"first_sample": (step - 1) * rows, "last_sample": step * rows - 1}
        self._callback.after_step(step, values | samples)
        self._tell(skipped_line(step, self._config.train.steps, values, **samples))
        if (in_a_row := values["skipped_in_a_row"]) >= most:
            raise Diverged(
                f"step {step}: {in_a_row} steps in a row were skipped (train.max_skipped {most}), "
                f"the loss is {values['loss']}; their samples are "
                f"{samples['last_sample'] + 1 - in_a_row * rows} to {samples['last_sample']}, more "
                f"in {self._run.folder.metrics}. Parameters and checkpoints are as before. Lower "
                "optimizer.learning_rate or optimizer.clip_norm, lengthen optimizer.warmup_steps, "
                "or look at the data, in another --workdir"
            )


def read_metrics(metrics: Metrics) -> dict[str, Any]:
    """A step's metrics as numbers on the host, which waits until the step is done."""
    return {name: value.item() for name, value in jax.device_get(metrics).items()}
