"""What a run of the paper would cost on GPUs, from speeds that were measured or modelled."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.analysis.paper.catalogue import Entry
from xlstm_jax.config import Config, load, task_of

FITS = "benchmarks/results/scaling/*.json"  # rows of docs/scaling.md
SIZE = re.compile(r"(125m|350m|760m|1\.3b|2\.7b)")


class Cost(NamedTuple):
    """Of one run.

    Attributes:
        tokens: that it reads.
        flops: of the model, without recomputation.
        hours: of one device; None where no speed is known.
        device: which.
        how: where the speed comes from.
    """

    tokens: int
    flops: float
    hours: float | None
    device: str = ""
    how: str = "no speed is known"


@functools.cache
def loaded(name: str, flags: tuple[str, ...] = ()) -> Config:
    """A configuration below configs/.

    Args:
        flags: as on train.py's command line, numbers alone.
    """
    given = [flag.removeprefix("--config.").partition("=") for flag in flags]
    return load(f"configs/{name}", {key: float(text) for key, _, text in given})


@functools.cache
def flops_per_token(name: str) -> float:
    """Of the forward and the backward pass."""
    config = loaded(name)
    return training_flops_per_token(task_of(config).model(stacked=True), config.data.context_length)


def cost_of(entry: Entry, speeds: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost of an entry's run.

    The speed is that of the same model where there is one, measured before modelled; else that of
    another size of its family, if both reach the same share of the device's peak.
    """
    config = loaded(entry.config, entry.flags)
    tokens = config.train.steps * config.data.batch_size * config.data.context_length
    per_token = flops_per_token(entry.config)
    ordered = sorted(speeds, key=lambda row: row["how"] == "measured")  # the last one counts
    known = {_model(row["config"]): row for row in ordered}
    here = _model(entry.like or entry.config)
    if row := known.get(here):
        hours = tokens / row["tokens_per_second"] / 3600
        how = row["how"] if entry.like is None else f"{row['how']}, of xLSTM[1:0]"
        return Cost(tokens, tokens * per_token, hours, row["device"], how)
    family = [row for model, row in known.items() if _family(model) == _family(here)]
    if not family:
        return Cost(tokens, tokens * per_token, None)
    # the nearest size
    row = min(family, key=lambda row: abs(flops_per_token(row["config"]) / per_token - 1))
    rate = row["tokens_per_second"] * flops_per_token(row["config"]) / per_token
    how = f"by FLOPs, from {_model(row['config'])} ({row['how']})"
    return Cost(tokens, tokens * per_token, tokens / rate / 3600, row["device"], how)


def _model(config: str) -> str:
    """A configuration's name without the length of its run."""
    return re.sub(r"-?(15b|300b)$", "", config)


def _family(model: str) -> str:
    return SIZE.sub("", model)


def fitting(root: pathlib.Path) -> tuple[int, int]:
    """How many runs were compiled for a pod, and how many of them fit."""
    rows = [json.loads(path.read_text()) for path in root.glob(FITS)]
    return len(rows), sum(row["fits"] for row in rows)
