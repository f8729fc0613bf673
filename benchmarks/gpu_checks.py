"""Stages of `benchmarks.on_a_gpu` that ask whether results are right: the kernels' cases against
float64, what stands around the cells, and the open question about Triton's kernels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import QUICK, arguments, backends, cotangents_of, programs, results
from pallas_kernels.dispatch import target_device
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm import pallas_triton, pallas_triton_tiles
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front
from pallas_kernels.row_norm import row_norm
from pallas_kernels.testing import around_cells, many_tokens, pallas_backend, specs
from pallas_kernels.testing.specs import Spec

Rows = Iterator[dict[str, Any]]
OPEN = "8x256x512-T8192"


def float64(part: int, parts: int, *, tiny: bool) -> Rows:
    """One of `parts` shares of the cases of both cells, on each backend of the device."""
    cases = QUICK if tiny else (*specs.MLSTM_ON_DEVICE, *specs.SLSTM_ON_DEVICE)
    for spec in cases[part::parts]:
        for backend in backends(spec)[0 if tiny else 1 :]:  # the XLA form runs on CPUs as well
            row: dict[str, Any] = {"case": spec.name, "backend": backend}
            options = {"chunk_size": spec.chunk} if spec.K else {}
            try:
                errors = pallas_backend.check(backend, spec, mode=False, **options)
                worst = max(errors, key=errors.get)
                row |= {"error": errors[worst], "of": worst, "tolerance": spec.tolerance}
            except NotImplementedError as reason:
                row["not_served"] = str(reason)
            except AssertionError as error:
                row["failed"] = str(error)
            yield row


PAPER, OF_7B = {"eps": 1e-5, "activation": "silu"}, {"eps": 1e-6, "activation": "sigmoid"}
# Tiles that are not full, then the models' channels. 125M's tiles do not divide evenly among the
# programs of the backward pass.
AROUND = {
    (mlstm_front, "parts of tiles"): (dict(time=70, channels=72, dtype="float32"), {}),
    (mlstm_back, "parts of tiles"): (dict(time=7, head_dim=384, dtype="float32"), PAPER),
    (mlstm_front, "as 125m, float32"): (dict(time=256, channels=1536, dtype="float32"), {}),
    (mlstm_front, "as 125m"): (dict(time=2048, channels=1536, gates=8, dtype="bfloat16"), {}),
    (mlstm_back, "as 125m"): (dict(time=2048, heads=4, head_dim=384, dtype="bfloat16"), PAPER),
    (mlstm_front, "as 1.3b"): (dict(time=384, channels=4096, gates=8, dtype="bfloat16"), {}),
    (mlstm_back, "as 1.3b"): (dict(time=384, heads=4, head_dim=1024, dtype="bfloat16"), PAPER),
    (mlstm_back, "as 7b"): (
        dict(time=384, heads=8, head_dim=512, skip=False, dtype="bfloat16"),
        OF_7B,
    ),
}
DRAW = {mlstm_front: around_cells.draw_front, mlstm_back: around_cells.draw_back}
NORMS = (768, 2048, 4096)


def around_the_cells(*, tiny: bool) -> Rows:
    """What stands before and behind the cell of a block, and the norm of one row, in float64."""
    backend = "reference" if target_device()[0] == "cpu" else "pallas_triton"
    for (op, name), (shape, options) in list(AROUND.items())[: 2 if tiny else None]:
        case, arrays = f"{op.__name__}, {name}", DRAW[op](**shape)
        low = {key: jnp.asarray(x, shape["dtype"]) for key, x in arrays.items()}
        try:
            found = around_cells.values_and_gradients(op, low, backend=backend, **options)
        except jax.errors.JaxRuntimeError as error:  # too much of something for this device
            yield {"case": case, "backend": backend, "failed": str(error)}
            continue
        errors = around_cells.errors(found, around_cells.exact(op, arrays, **options))
        yield judged(case, backend, errors, specs.TOLERANCE[shape["dtype"]])
    backend = "plain" if backend == "reference" else backend
    for dim in NORMS[: 1 if tiny else None]:
        rng = np.random.default_rng(0)
        x, scale = jnp.asarray(rng.normal(size=(1, dim)) + 3, "bfloat16"), rng.normal(size=dim)
        got = jax.jit(lambda x, s: row_norm(x, s, 1e-3, center=True, backend=backend))(x, scale)
        x = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean()
        want = x / np.sqrt((x**2).mean() + 1e-3) * scale
        error = float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())
        yield judged(f"row_norm, {dim}", backend, {"y": error}, 5e-3)


def judged(case: str, backend: str, errors: dict[str, float], tolerance: float) -> dict[str, Any]:
    """The row of a case."""
    worst = max(errors, key=errors.get)
    row = {"case": case, "backend": backend, "error": errors[worst], "of": worst}
    row |= {"tolerance": tolerance}
    wrong = {name: f"{x:.1e}" for name, x in errors.items() if not x <= tolerance}
    return row | ({"failed": f"more than {tolerance:g} off: {wrong}"} if wrong else {})


def float64_over_many_tokens(spec: Spec, inputs: Any, cotangents: Any) -> tuple[Any, ...]:
    """Results of the XLA form in float64, a row of the batch at a time, as float32."""
    both, rows = programs(spec, "chunkwise")[1], []
    with jax.enable_x64(True):
        for i in range(spec.B):
            one = [x[i : i + 1].astype(jnp.float64) for x in (*inputs, *cotangents)]
            found = results(both, tuple(one[: len(inputs)]), one[len(inputs) :])
            rows.append(jax.tree.map(lambda x: x.astype(jnp.float32), found))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)


def triton(*, tiny: bool) -> Rows:
    """The open question: Triton's kernels at 8 heads of 256 x 512, T 8192, of which two calls
    differed on an H100. Ten calls with two pipeline stages, as it was, and ten with one; before
    them, what serves such heads.
    """
    spec = QUICK[0] if tiny else next(spec for spec in specs.MLSTM_SPEED if spec.name == OPEN)
    pallas_triton.HOPPERS_WIDEST = spec.K * spec.V  # it refuses them while the question is open
    inputs, cotangent = arguments(spec)
    cotangents, limits = cotangents_of(spec, inputs, cotangent), many_tokens.limits(spec)
    exact = float64_over_many_tokens(spec, inputs, cotangents)

    def compared(got: Any, backend: str, **row: Any) -> dict[str, Any]:
        difference = many_tokens.difference(spec, got, exact)
        more = {"to_float64": difference._asdict(), "within_limits": difference.within(limits)}
        return {"case": spec.name, "backend": backend, **row, **more}

    for backend in backends(spec):
        if backend != "pallas_triton":
            row = compared(results(programs(spec, backend)[1], inputs, cotangents), backend)
            yield row if row["within_limits"] else row | {"failed": f"beyond {limits}"}
    on_cpu = target_device()[0] == "cpu"
    for stages in (2, 1):
        pallas_triton_tiles.PIPELINE_STAGES = stages
        jax.clear_caches()  # kernels traced with another number
        both, first = programs(spec, "pallas_triton")[1], None
        for call in range(2 if tiny else 10):
            with interpreted(True) if on_cpu else contextlib.nullcontext():
                got = results(both, inputs, cotangents)
            first = got if first is None else first
            same = jax.tree.map(lambda x, y: bool((x == y).all()), got, first)
            row = {"pipeline_stages": stages, "call": call, "same_as_first": all_of(same)}
            yield compared(got, "pallas_triton", **row)


def all_of(tree: Any) -> bool:
    return all(jax.tree.leaves(tree))
