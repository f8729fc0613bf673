"""Stages of `benchmarks.on_a_gpu` about whole models: training steps, loss curves, inference."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import inference as inference_benchmark
from benchmarks import train_step
from xlstm_jax.config import Config, load
from xlstm_jax.parallel import make_mesh

Rows = Iterator[dict[str, Any]]
CURVE_STEPS = 200
TARGETS = {
    "125m [1:0]": {"tokens_per_second": 230_000},
    "1.3b [1:0]": {"mfu": 0.40},
    "1.42b as 7b": {"tokens_per_second": 55_000},
}
TINY_STEP = ("configs/quickstart.py", {"data.batch_size": 2, "data.context_length": 64})


def step_config(name: str, tiny: bool, **overrides: Any) -> Config:
    file, settings = TINY_STEP if tiny else train_step.STEPS[name]
    return load(file, settings | overrides)


@contextlib.contextmanager
def on_mesh(config: Config) -> Iterator[jax.sharding.Mesh]:
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        yield mesh


def step(name: str, *, tiny: bool) -> Rows:
    """A training step's time, then its loss and gradient norm against the XLA forms, two rows."""
    config = step_config(name, tiny)
    with on_mesh(config) as mesh:
        found = train_step.step_time(config, mesh, 5 if tiny else 20)
        target = {} if tiny or name not in TARGETS else {"target": TARGETS[name]}
        yield {"case": name, **found, **target}
        few = step_config(name, tiny, **{"data.batch_size": 2})
        row: dict[str, Any] = {"case": f"{name}, against XLA forms, two rows"}
        try:
            yield row | train_step.check(few, mesh)
        except AssertionError as error:
            yield row | {"failed": f"differences of {error}"}


def step_ahead(name: str, *, tiny: bool) -> None:
    config = step_config(name, tiny)
    few = step_config(name, tiny, **{"data.batch_size": 2})
    with on_mesh(config) as mesh:
        for form in (config, few, train_step.plain(few)):
            train_step.compiled(form, mesh)


def curve_config(tiny: bool) -> Config:
    """125M, 8 x 1024 tokens of the embedded text, a schedule as long as the run."""
    steps = 3 if tiny else CURVE_STEPS
    settings = {
        "data.path": "stdlib",
        "data.tokenizer": "byte",
        "data.max_tokens": None,
        "data.batch_size": 8,
        "data.context_length": 1024,
        "optimizer.decay_steps": None,
        "optimizer.warmup_steps": steps // 10,
        "train.steps": steps,
    }
    return step_config("125m [1:0]", tiny, **settings | (TINY_STEP[1] if tiny else {}))


def curve(form: str, *, tiny: bool) -> Rows:
    """The losses of a training with the kernels or with the XLA forms."""
    config = of_form(curve_config(tiny), form)
    with on_mesh(config) as mesh:
        losses = train_step.losses(config, mesh, config.train.steps)
    yield {"case": "125m [1:0], 8 x 1024", "curve": form, "last": losses[-1], "losses": losses}


def curve_ahead(form: str, *, tiny: bool) -> None:
    """Compiles for `curve`."""
    config = of_form(curve_config(tiny), form)
    with on_mesh(config) as mesh:
        train_step.compiled(config, mesh)


def of_form(config: Config, form: str) -> Config:
    return train_step.plain(config) if form == "xla" else config


def inference(*, tiny: bool) -> Rows:
    """7B: decode, then prefill."""
    size, lengths, batches = inference_sizes(tiny)
    target = {"7b decode, batch 1": 185, "7b prefill, T 8192": 50_000}
    for row in inference_benchmark.alone(size, lengths, batches, 1 if tiny else 5):
        wanted = target.get(row["case"])
        yield row | ({"target": {"tokens_per_second": wanted}} if wanted else {})


def inference_sizes(tiny: bool) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return ("tiny", (32,), (1, 2)) if tiny else ("7b", (2048, 8192), (1, 16))


def inference_ahead(*, tiny: bool) -> None:
    inference_benchmark.compile_ahead(*inference_sizes(tiny))
