"""Stages of `benchmarks.on_a_gpu` about the kernels alone: their times beside public kernels, and
the chunk lengths that are fastest.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import device_time, kernels
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front
from pallas_kernels.testing import specs
from pallas_kernels.testing.around_cells import draw_back, draw_front
from pallas_kernels.testing.specs import Spec
from xlstm_jax.models.conv import convolve
from xlstm_jax.models.cpu_forms import silu

Rows = Iterator[dict[str, Any]]
CALLS = 10  # profiled


def spec_of(name: str, tiny: bool) -> Spec:
    known = {s.name: s for s in (*specs.MLSTM_SPEED, *specs.SLSTM_SPEED, *specs.MLSTM_MODELS)}
    return kernels.QUICK[0 if known[name].K else 1] if tiny else known[name]


def kernel(name: str, *, tiny: bool) -> Rows:
    """Ours, then mlstm_kernels and attention, in one process."""
    spec, repetitions = spec_of(name, tiny), 1 if tiny else 20
    yield from kernels.ours(spec, repetitions, against_float64=tiny)  # float64 is a stage
    names = [rival for rival in kernels.rivals.USUAL if rival != "simple GLA"]
    yield from kernels.theirs(spec, repetitions, names)


def kernel_ahead(name: str, *, tiny: bool) -> None:
    kernels.compile_ahead(spec_of(name, tiny))


def around(*, tiny: bool) -> Rows:
    """`mlstm_front` and `mlstm_back` with all gradients, 65,536 tokens of the 125M model: time by
    kernel; beside them the convolution and SiLU, which are XLA's.
    """
    batch, time, heads, head_dim = (1, 8, 2, 8) if tiny else (32, 2048, 4, 384)
    channels, dtype = heads * head_dim, jnp.float32 if tiny else jnp.bfloat16

    def held(drawn: dict[str, Any]) -> list[jax.Array]:
        """What is of tokens in the type of activations, weights in float32."""
        return [
            jnp.asarray(x, dtype if x.shape[:2] == (batch, time) else jnp.float32)
            for x in drawn.values()
        ]

    front = held(draw_front(batch, time, channels, gates=8))
    back = held(draw_back(batch, time, heads, head_dim))

    def convolved(u: Any, kernel: Any, bias: Any) -> Any:
        return silu(convolve(u, kernel, bias, None, None, None)[0])

    weights = jnp.ones((4, channels)), jnp.zeros(channels)
    for name, function, inputs in (
        ("mlstm_front", lambda *x: tuple(mlstm_front(*x)), front),
        ("convolution and SiLU", convolved, (front[1], *weights)),
        ("mlstm_back", functools.partial(mlstm_back, eps=1e-5, activation="silu"), back),
    ):
        both = jax.jit(functools.partial(_value_and_gradients, function))
        jax.block_until_ready(both(*inputs))
        with device_time.profiled() as events:
            for _ in range(CALLS):
                jax.block_until_ready(both(*inputs))
        found = device_time.by_name(events, CALLS)
        yield {"case": f"{name}, 125m", "ms": sum(x["ms"] for x in found), "kernels": found}


def _value_and_gradients(function: Callable, *inputs: Any) -> Any:
    """With cotangents that are the value itself."""
    value, pull = jax.vjp(function, *inputs)
    return value, pull(value)


def rival(names: Sequence[str] | None, shapes: Sequence[str], *, tiny: bool) -> Rows:
    """Rivals that may take long to choose their tiles; None: mlstm_kernels with other chunk
    lengths.
    """
    if absent := kernels.rivals.missing():
        yield {"not_timed": absent}
    for name in shapes:
        yield from kernels.theirs(spec_of(name, tiny), 10, names or tuple(kernels.rivals.CHUNKED))


TUNED_CHUNKS = {"pallas_gpu": (128, 256, 512), "pallas_triton": (64, 128)}


def tune(name: str, *, tiny: bool) -> Rows:
    """The fastest right chunk length, of what the device's backends take."""
    spec, (sizes, backend) = spec_of(name, tiny), tuned(name, tiny)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "table.json"
        table = kernels.tune([spec], {backend: sizes}, file, 1 if tiny else 10)
    yield {"case": spec.name, "table": table}


def tuned(name: str, tiny: bool) -> tuple[tuple[int, ...], str]:
    backend = kernels.backends(spec_of(name, tiny))[-1]  # the best of the device
    return TUNED_CHUNKS.get(backend, (32, 64)), backend


def tune_ahead(name: str, *, tiny: bool) -> None:
    kernels.compile_ahead(spec_of(name, tiny), tuned(name, tiny)[0])
