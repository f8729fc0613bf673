"""Stages of `benchmarks.on_a_gpu` about whole models: training steps, loss curves, inference.

Each compiles its programs, or takes those that were compiled without the device (`prepared.py`)
from the folder `prepared`.
"""

import contextlib
import pathlib
import re
from collections.abc import Container, Iterator
from typing import Any

import jax

from benchmarks import device_time, inference_alone, train_step
from benchmarks import prepared as prepared_programs
from benchmarks.gpu_stages import slug
from benchmarks.inference import alternate, seconds
from xlstm_jax.config import Config, load
from xlstm_jax.parallel import make_mesh, xla_flags

Rows = Iterator[dict[str, Any]]
Folder = pathlib.Path | None
CURVE_STEPS, STEPS_TIMED = 200, 10
TARGETS = {
    "125m [1:0]": {"tokens_per_second": 230_000},
    "1.3b [1:0]": {"mfu": 0.40},
    "1.42b as 7b": {"tokens_per_second": 55_000},
}
TWO_ROWS = {"data.batch_size": 2, "train.accumulation_steps": 1}
TINY_STEP = (
    "configs/quickstart.py",
    {
        "model.num_blocks": 1,
        "model.blocks": "mlstm",
        "data.batch_size": 2,
        "data.context_length": 64,
    },
)


def step_config(name: str, tiny: bool, **overrides: Any) -> Config:
    file, settings = TINY_STEP if tiny else train_step.STEPS[name]
    return load(file, settings | overrides)


@contextlib.contextmanager
def on_mesh(config: Config) -> Iterator[jax.sharding.Mesh]:
    """Of one device, whose numbers these are, also where there are several."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def step(name: str, *, tiny: bool, prepared: Folder = None) -> Rows:
    """A training step's time, then its loss and gradient norm against the XLA forms, two rows; the
    latter not with prepared programs.
    """
    config = step_config(name, tiny)
    with on_mesh(config) as mesh:
        found = train_step.step_time(
            config, mesh, 5 if tiny else STEPS_TIMED, _start(prepared, f"step {name}", config)
        )
        target = {} if tiny or name not in TARGETS else {"target": TARGETS[name]}
        yield {"case": name, "prepared": prepared is not None, **found, **target}
        if prepared:
            return
        few = step_config(name, tiny, **TWO_ROWS)
        row: dict[str, Any] = {"case": f"{name}, against XLA forms, two rows"}
        try:
            yield row | train_step.check(few, mesh)
        except AssertionError as error:
            yield row | {"failed": f"differences of {error}"}


def step_ahead(name: str, *, tiny: bool) -> None:
    config = step_config(name, tiny)
    few = step_config(name, tiny, **TWO_ROWS)
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


def curve(form: str, *, tiny: bool, prepared: Folder = None) -> Rows:
    """The losses of a training with the kernels or with the XLA forms."""
    config = of_form(curve_config(tiny), form)
    with on_mesh(config) as mesh:
        start = _start(prepared, f"curve {form}", config)
        losses = train_step.losses(config, mesh, config.train.steps, start)
    yield {"case": "125m [1:0], 8 x 1024", "curve": form, "last": losses[-1], "losses": losses}


def curve_ahead(form: str, *, tiny: bool) -> None:
    """Compiles for `curve`."""
    config = of_form(curve_config(tiny), form)
    with on_mesh(config) as mesh:
        train_step.compiled(config, mesh)


def of_form(config: Config, form: str) -> Config:
    return train_step.plain(config) if form == "xla" else config


def _start(folder: Folder, name: str, config: Config) -> train_step.Start | None:
    """A prepared step with a state and a batch that are drawn."""
    if folder is None:
        return None
    loaded = prepared_programs.load(folder / file_of(name))
    state, batch = loaded.drawn(lambda leaf: _of_training(leaf, config.model.vocab_size))
    metrics = [path.split("'")[1] for path in loaded.program.results[len(state) :]]

    def run(state: list[jax.Array], batch: Any) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        results = loaded.run(state, jax.tree.leaves(batch))
        return results[: len(state)], dict(zip(metrics, results[len(state) :], strict=True))

    return train_step.Start(run, state, batch)


def _of_training(leaf: prepared_programs.Leaf, vocabulary: int) -> str:
    """What a leaf of (state, batch) begins with: `Loaded.drawn`."""
    in_batch = leaf.path.startswith("[1]")
    if leaf.dtype.startswith("int"):
        return str(vocabulary) if in_batch and "segment" not in leaf.path else "zeros"
    if ".params" not in leaf.path:  # moments, counts
        return "zeros"
    if len(leaf.shape) > 1:
        return "normal"
    return "ones" if any(name in leaf.path for name in ("scale", "norm", "skip")) else "zeros"


def prepare(
    folder: pathlib.Path, devices: Any, wanted: Container[str], *, tiny: bool
) -> Iterator[str]:
    """Compiles the programs of the wanted stages here for such a device; gives the name of each."""
    # what comes out of a compilation cache can't be written out whole (CPUs, jaxlib 0.10)
    jax.config.update("jax_enable_compilation_cache", False)
    devices = devices or jax.devices()[:1]
    names = list(train_step.STEPS)[: 1 if tiny else None]
    steps = {
        f"step {name}": step_config(name, tiny) for name in names if f"step:{slug(name)}" in wanted
    }
    forms = {
        f"curve {form}": of_form(curve_config(tiny), form)
        for form in ("kernels", "xla")
        if f"curves:{form}" in wanted
    }
    for name, config in (steps | forms).items():
        mesh = make_mesh(config.mesh, devices)
        with jax.set_mesh(mesh):
            programs = train_step.programs(config, mesh)
            shapes = (programs.state, programs.batch_on_devices())
            prepared_programs.prepare(folder / file_of(name), programs.step, shapes, donated=1)
        yield name
    if "inference:prefill" not in wanted:
        return
    mesh = make_mesh(step_config("125m [1:0]", tiny).mesh, devices)
    with jax.set_mesh(mesh):  # the types of weights depend on the device
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        for case, tokens, function, shapes in inference_alone.reading(*inference_sizes(tiny)[:2]):
            shapes = jax.tree.map(
                lambda x, to=everywhere: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes
            )
            prepared_programs.prepare(
                folder / file_of(case), function, shapes, facts={"tokens": tokens},
                options={} if tiny else xla_flags.compiler_options(xla_flags.WRITING),
            )  # fmt: skip
            yield case


def file_of(name: str) -> str:
    """ "step 125m [1:0]" as "step_125m_1_0.program"."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_") + prepared_programs.SUFFIX


def inference(kind: str, *, tiny: bool, prepared: Folder = None) -> Rows:
    """7B: decode, or prefill."""
    size, lengths, batches = inference_sizes(tiny)
    target = {"7b decode, batch 1": 185, "7b prefill, T 8192": 50_000}
    repetitions = 1 if tiny else 5
    if prepared is None:
        rows = inference_alone.alone(size, *_of_kind(kind, lengths, batches), repetitions)
    else:
        rows = _prepared_reading(prepared, size, lengths, repetitions)
    for row in rows:
        wanted = target.get(row["case"])
        yield row | ({"target": {"tokens_per_second": wanted}} if wanted else {})


def _of_kind(
    kind: str, lengths: tuple[int, ...], batches: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return ((), batches) if kind == "decode" else (lengths, ())


def _prepared_reading(
    folder: pathlib.Path, size: str, lengths: tuple[int, ...], repetitions: int
) -> Rows:
    """The rows of `inference_alone.alone` without those that decode."""
    for case, *_ in inference_alone.reading(size, lengths):
        loaded = prepared_programs.load(folder / file_of(case))
        arguments = loaded.drawn(lambda leaf: "normal" if leaf.path.startswith("[0]") else "zeros")
        took = alternate(
            {"ours": lambda run=loaded.run, x=arguments: _seconds(run, x)}, repetitions
        )["ours"]
        tokens = loaded.program.facts["tokens"]
        rates = {"seconds": took, "tokens_per_second": tokens / took}
        kernels = device_time.kernels_of(lambda run=loaded.run, x=arguments: _seconds(run, x))
        yield {"case": case, "prepared": True, **rates, "kernels": kernels}


def _seconds(run: Any, arguments: Any) -> float:
    return seconds(lambda: jax.block_until_ready(run(*arguments)))


def inference_sizes(tiny: bool) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return ("tiny", (32,), (1, 2)) if tiny else ("7b", (2048, 8192), (1, 16))


def inference_ahead(kind: str, *, tiny: bool) -> None:
    size, lengths, batches = inference_sizes(tiny)
    inference_alone.compile_ahead(size, *_of_kind(kind, lengths, batches))
