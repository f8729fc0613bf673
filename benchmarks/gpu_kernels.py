"""Stages of `benchmarks.on_a_gpu` about the kernels alone: their times beside public kernels, and
the chunk lengths that are fastest.
"""

import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import kernels
from pallas_kernels.testing import specs
from pallas_kernels.testing.specs import Spec

Rows = Iterator[dict[str, Any]]


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
