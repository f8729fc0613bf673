"""The lines that a person sees of a run."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from xlstm_jax.config import Config
from xlstm_jax.installation import module, next_lines, program, shell_line
from xlstm_jax.parallel import is_first_process
from xlstm_jax.progress import duration
from xlstm_jax.runs.folder import longer
from xlstm_jax.training.outlets import Trouble

WIDTH = 100  # columns that a line of a step takes at most
# What a line that is too long does without, tried in this order; metrics.jsonl has all of it.
LEFT_OUT = (
    {},
    {"rate"},
    {"per device"},
    {"per device", "rate"},
    {"per device", "rate", "gradient"},
)
_stdout = Trouble("stdout")
_nobody_reads = False


def say(*lines: Any) -> None:
    """Prints lines in the first process. Training outlives its terminal: a full disk below the log,
    or a reader that is gone, is said on stderr once.
    """
    if not lines or not is_first_process() or _nobody_reads:
        return  # print without arguments would write an empty line
    with _stdout.caught():
        try:
            print(*lines, sep="\n", flush=True)
        except BrokenPipeError:
            _give_up_stdout()  # the reader won't come back
            raise


def end_of_output() -> None:
    """After a run's last line: where stdout can't be written, it is no longer tried, so that the
    process ends with the run's own status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()


def _give_up_stdout() -> None:
    """What is said from now on, and what lies in the buffer, goes nowhere."""
    global _nobody_reads
    _nobody_reads = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def step_name(step: int, steps: int) -> str:
    """How a line begins, so that it survives being mixed with other output: step  40/1200."""
    return f"step {step:>{len(str(steps))}}/{steps}"


def console_line(
    step: int,
    steps: int,
    values: Mapping[str, float | None],
    seconds_left: float | None,
    devices: int = 1,
) -> str:
    """One line for a step, of at most `WIDTH` columns. Values that are not known are left out, and
    where the line is too long, parts of it as `LEFT_OUT` says.
    """
    rate, mfu, skipped = (values.get(name) for name in ("tokens_per_second", "mfu", "skipped"))
    speed = None if rate is None else f"{rate:,.0f} tokens/s"
    per_device = None if rate is None or devices == 1 else f"({rate / devices:,.0f} per device)"
    parts = {
        "step": step_name(step, steps),
        "loss": f"loss {values['loss']:.4f}",
        "gradient": f"grad norm {values['grad_norm']:.2f}",
        "rate": f"lr {values['learning_rate']:.2e}",
        "speed": speed,
        "per device": per_device,
        "mfu": None if mfu is None else f"MFU {mfu:.1%}",
        "left": None if seconds_left is None else f"{duration(seconds_left)} left",
        "skipped": f"{skipped} skipped" if skipped else None,
    }
    line = ""
    for without in LEFT_OUT:
        shown = {name: part for name, part in parts.items() if name not in without}
        line = "  ".join(filter(None, shown.values())).replace("s  (", "s (")
        if len(line) <= WIDTH:
            break
    return line


def skipped_line(
    step: int, steps: int, values: Mapping[str, float], first_sample: int, last_sample: int
) -> str:
    """One line per step whose update was not applied."""
    return (
        f"{step_name(step, steps)}  SKIPPED: loss {values['loss']:.4f}  grad norm "
        f"{values['grad_norm']:.2f}  samples {first_sample} to {last_sample}  "
        f"{values['skipped']} skipped so far"
    )


def next_commands(workdir: str | os.PathLike, config: Config, writes_text: bool) -> list[str]:
    """What a person may type after a run, as lines that a shell takes, with the run's folder as it
    was given.
    """
    commands = [shell_line(program("eval"), workdir=workdir)]
    if writes_text:
        commands.append(shell_line(module("generation"), checkpoint=workdir, prompt="def "))
    again = "another --workdir and" if config.optimizer.follows_length else "the same --workdir and"
    return next_lines(*commands, f"# to train longer: {again} {longer(workdir, config)}")
