"""Checks the kernels, then times them: ms, TFLOP/s, GB/s and the share of the roofline, beside
public kernels in the same run.

    python -m benchmarks.kernels            # on a GPU or TPU: results/kernels_<device>.json
    python -m benchmarks.kernels --quick    # tiny sizes, on a CPU too: no numbers to keep
    python -m benchmarks.kernels --tune     # the fastest right chunks: pallas_kernels/tuned/
    python -m benchmarks.kernels --predict  # no device: results/kernels_predicted_h200.json

Each kernel is compared with the float64 recurrence at a short length, and its timed outputs and
gradients with those of the XLA form (`pallas_kernels/testing/many_tokens.py`). Times are device
times from the profiler, or wall clock over a loop of calls where the profiler has none; medians.
FLOPs and bytes are those of roofline.py: what the function needs, not what the kernel does.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# PyTorch needs room on the same GPU
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks import rivals, roofline
from benchmarks.device_time import seconds
from pallas_kernels import mlstm, slstm
from pallas_kernels.dispatch import device_family, target_device
from pallas_kernels.mlstm.api import ORDER as MLSTM_ORDER
from pallas_kernels.slstm.api import ORDER as SLSTM_ORDER
from pallas_kernels.testing import many_tokens, pallas_backend, specs
from pallas_kernels.testing.specs import Spec
from pallas_kernels.tuning import file_name

RESULTS = pathlib.Path(__file__).parent / "results"
TABLES = pathlib.Path(__file__).parents[1] / "pallas_kernels" / "tuned"
QUICK = (
    Spec("2x16x32-T64", 64, 16, 32, B=1, state=False, dtype="float32"),
    Spec("2x16-T8", 8, 0, 16, B=2, state=False, dtype="float32"),
)
# Chunk lengths that --tune tries.
CHUNKS = {
    "pallas_tpu": (64, 128, 256, 512),
    "pallas_gpu": (64, 128, 256, 512, 1024),
    "pallas_triton": (32, 64, 128),
}


def arguments(spec: Spec, seed: int = 0) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(inputs, cotangent of h), random, made on the device."""
    keys = jax.random.split(jax.random.key(seed), 6)
    tokens, dtype = (spec.B, spec.T, spec.H), spec.dtype
    normal = jax.random.normal
    if spec.K:
        shapes = ((*tokens, spec.K), (*tokens, spec.K), (*tokens, spec.V))
        inputs = [normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)]
        inputs += [normal(keys[3], tokens), normal(keys[4], tokens) + 3]
    else:
        inputs = [normal(keys[0], (spec.B, spec.T, 4, spec.H, spec.V), dtype)]
        inputs += [
            normal(keys[1], (4, spec.H, spec.V, spec.V)) / spec.V**0.5,
            normal(keys[2], (4, spec.H, spec.V)),
        ]
    return tuple(inputs), normal(keys[5], (*tokens, spec.V), dtype)


def programs(spec: Spec, backend: str, **options: Any) -> tuple[Callable, Callable]:
    """(forward, forward with the gradients of all inputs), jitted; both take the inputs and the
    cotangent.
    """
    if spec.K:
        options = {"input_gate": spec.input_gate} | options
    op = functools.partial(mlstm if spec.K else slstm, backend=backend, **options)

    def forward(inputs: Any, cotangent: jax.Array) -> Any:
        del cotangent
        return op(*inputs)[0]

    def both(inputs: Any, cotangent: jax.Array) -> Any:
        h, pull = jax.vjp(lambda *x: op(*x)[0], *inputs)
        return h, *pull(cotangent)

    return jax.jit(forward), jax.jit(both)


def check(spec: Spec, backend: str) -> float:
    """Largest relative error against the float64 recurrence at a short length, documents and states
    included; asserts the tolerance.
    """
    short = spec.but(B=1, H=min(spec.H, 2), T=min(spec.T, 193), documents="borders", state=True)
    # the timed chunk may be longer than this: `ours` compares that too
    options = {"chunk_size": short.chunk} if spec.K else {}
    return max(pallas_backend.check(backend, short, mode=False, **options).values())


def results(both: Callable, inputs: Any, cotangents: Sequence[jax.Array]) -> tuple[Any, ...]:
    """What `many_tokens.difference` compares: a form's results for both cotangents."""
    return tuple(both(inputs, cotangent) for cotangent in cotangents)


def cotangents_of(spec: Spec, inputs: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cotangent, and the one that is 0 where the gradient jumps."""
    return cotangent, many_tokens.away_from_kink(spec, inputs, cotangent)


def row(
    spec: Spec, name: str, backward: bool, took: float, source: str, **more: Any
) -> dict[str, Any]:
    """One line of the table."""
    work = roofline.least_work(spec, backward)
    least = roofline.least_seconds(work, target_device()[1])
    return {
        "case": spec.name,
        "kernel": name,
        "pass": "forward+backward" if backward else "forward",
        "ms": took * 1e3,
        "tflops": work.flops / took / 1e12,
        "gb_per_s": work.bytes / took / 1e9,
        "share_of_roofline": least and least / took,
        "microseconds_per_step": None if spec.K else took / spec.T * 1e6,
        "time_from": source,
        **more,
    }


def backends(spec: Spec) -> tuple[str, ...]:
    """Those that the device has, the XLA form first."""
    return (MLSTM_ORDER if spec.K else SLSTM_ORDER)[device_family(*target_device())][::-1]


def compile_ahead(spec: Spec, chunks: Sequence[int | None] = (None,)) -> None:
    """Compiles what `ours` and `tune` run, and times nothing: a process that comes later finds it
    in the compilation cache.
    """
    shapes = jax.eval_shape(lambda: arguments(spec))
    for backend in backends(spec):
        for size in chunks:
            try:
                for program in programs(spec, backend, **({"chunk_size": size} if size else {})):
                    program.lower(*shapes).compile()
            except NotImplementedError as reason:
                print(f"{spec.name}: {backend} is left out: {reason}")


def ours(spec: Spec, repetitions: int, *, against_float64: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of the backends that the device has, the XLA form last in the order and first to run."""
    arrays, cotangent = arguments(spec)
    inputs, expected = (arrays, cotangent), None
    cotangents, limits = cotangents_of(spec, arrays, cotangent), many_tokens.limits(spec)
    for backend in backends(spec):
        try:
            more = {"error_to_float64": check(spec, backend)} if against_float64 else {}
            forward, both = programs(spec, backend)
            got = results(both, arrays, cotangents)
        except NotImplementedError as reason:
            print(f"{spec.name}: {backend} is left out: {reason}")
            continue
        if expected is None:
            expected = got
        else:
            difference = many_tokens.difference(spec, got, expected)
            more["difference_to_xla"] = difference._asdict()
            assert difference.within(limits), f"{spec.name}, {backend}: {more}, beyond {limits}"
        del got
        for backward, program in ((False, forward), (True, both)):
            yield row(spec, backend, backward, *seconds(program, inputs, repetitions), **more)


def theirs(
    spec: Spec, repetitions: int, names: Sequence[str] = rivals.USUAL
) -> Iterator[dict[str, Any]]:
    """Rows of the rivals; of one that fails, the reason."""
    for name, call, inputs in rivals.rivals(spec, names) if spec.K else ():
        try:
            for backward in (False, True):
                took = rivals.seconds(call, inputs, backward=backward, repetitions=repetitions)
                yield row(spec, name, backward, took, "CUDA events")
        except Exception as error:  # not our code: whatever it raises at a shape is a result
            reason = f"{type(error).__name__}: {error}"[:300]
            yield {"case": spec.name, "kernel": name, "failed": reason}


def show(result: dict[str, Any]) -> None:
    if "failed" in result:
        print(f"{result['case']:18} {result['kernel']} failed: {result['failed']}", flush=True)
        return
    share = (
        ""
        if result["share_of_roofline"] is None
        else f"{result['share_of_roofline']:6.1%} of roofline"
    )
    step = (
        ""
        if result["microseconds_per_step"] is None
        else f"{result['microseconds_per_step']:7.2f} µs/step"
    )
    line = (
        f"{result['case']:18} {result['kernel']:13} {result['pass']:16} {result['ms']:9.3f} ms "
        f"{result['tflops']:6.1f} TFLOP/s {result['gb_per_s']:5.0f} GB/s {share}{step}"
    )
    print(line.rstrip(), flush=True)


def tune(
    cases: Iterable[Spec],
    chunks: dict[str, tuple[int, ...]],
    path: pathlib.Path,
    repetitions: int = 10,
) -> dict[str, Any]:
    """Times forward and backward with every chunk length and writes the fastest of each K, V, dtype
    into the table at path.

    A chunk length whose results are not those of the XLA form is an error, as it is in `ours`.
    """
    table = json.loads(path.read_text()) if path.exists() else {}
    for spec in cases:
        (arrays, cotangent), limits = arguments(spec), many_tokens.limits(spec)
        shape = {"K": spec.K, "V": spec.V, "dtype": spec.dtype}
        cotangents = cotangents_of(spec, arrays, cotangent)
        expected = results(programs(spec, "chunkwise")[1], arrays, cotangents)
        for backend, sizes in chunks.items():
            times = {}
            for size in sizes:
                program = programs(spec, backend, chunk_size=size)[1]
                try:
                    got = results(program, arrays, cotangents)
                    difference = many_tokens.difference(spec, got, expected)
                # not served, or too large for the chip
                except (NotImplementedError, jax.errors.JaxRuntimeError) as reason:
                    print(f"{spec.name}: {backend} with {size}: {str(reason).splitlines()[0]}")
                    continue
                assert difference.within(limits), (
                    f"{spec.name}: {backend} with {size} is off: {difference}, beyond {limits}"
                )
                times[size] = seconds(program, (arrays, cotangent), repetitions)[0]
            if not times:
                continue
            best = min(times, key=times.get)
            print(
                f"{spec.name}: {backend} is fastest with {best}: "
                f"{ ({size: f'{took * 1e3:.3f} ms' for size, took in times.items()}) }"
            )
            entries = [
                entry for entry in table.get(f"mlstm/{backend}", []) if entry["shape"] != shape
            ]
            table[f"mlstm/{backend}"] = [*entries, {"shape": shape, "blocks": {"chunk_size": best}}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    return table


def predict() -> list[dict[str, Any]]:
    """Bytes, FLOPs and expected ms of pallas_gpu on an H200, to hold measurements against."""
    from pallas_kernels.mlstm.pallas_gpu import default_chunk_size

    kind, rows = "NVIDIA H200", []
    for spec in specs.MLSTM_SPEED + specs.SLSTM_SPEED:
        for backward in (False, True) if spec.K else (False,):
            work = roofline.least_work(spec, backward)
            result = {
                "case": spec.name,
                "pass": "forward+backward" if backward else "forward",
                "least": work._asdict(),
            }
            result["roofline_ms"] = roofline.least_seconds(work, kind) * 1e3
            if spec.K:
                chunk = default_chunk_size(spec.T, spec.K, spec.V)
                kernels = roofline.hopper_kernels(spec, chunk, backward)
                took = roofline.expected_seconds(kernels, kind)
                done = sum((kernel.work for kernel in kernels.values()), roofline.Work(0, 0))
                result |= {
                    "chunk_size": chunk,
                    "of_our_kernels": done._asdict(),
                    "expected_ms": took * 1e3,
                }
                result |= {
                    "expected_share_of_roofline": result["roofline_ms"] / result["expected_ms"]
                }
                result["kernels_ms"] = {
                    n: roofline.expected_seconds({n: k}, kind) * 1e3 for n, k in kernels.items()
                }
            else:
                step = roofline.expected_slstm_step(spec)
                result |= {
                    "expected_microseconds_per_step": step * 1e6,
                    "expected_ms": step * spec.T * 1e3,
                }
            rows.append(result)
            print(
                f"{spec.name:18} {result['pass']:17} roofline {result['roofline_ms']:7.3f} ms, "
                f"expected {result['expected_ms']:7.3f} ms"
            )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes; prints, and writes only where --out says"
    )
    parser.add_argument(
        "--tune", action="store_true", help="write the fastest chunk lengths instead"
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="write what an H200 should take instead; needs no device",
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--out", type=pathlib.Path, help="another file for the result")
    options = parser.parse_args(argv)

    if options.predict:
        note = {
            "device": "NVIDIA H200",
            "of": "pallas_gpu, not measured",
            "command": "python -m benchmarks.kernels --predict",
        }
        write(options.out or RESULTS / "kernels_predicted_h200.json", note, predict())
        return
    platform, kind = target_device()
    cases = [
        spec
        for spec in (QUICK if options.quick else specs.MLSTM_SPEED + specs.SLSTM_SPEED)
        if options.only in spec.name
    ]
    print(f"{kind} ({platform}), jax {jax.__version__}, {len(cases)} cases")
    if options.tune:
        names = [name for name in MLSTM_ORDER[device_family(platform, kind)] if name in CHUNKS]
        short = [spec for spec in cases if spec.K and spec.T <= 2048]
        short += (
            []
            if options.quick
            else [spec for spec in specs.MLSTM_MODELS if options.only in spec.name]
        )
        tune(
            short,
            {name: CHUNKS[name] for name in names},
            options.out or TABLES / file_name(kind),
            options.repetitions,
        )
        return
    if platform == "cpu" and not options.quick:
        raise SystemExit(
            "error: the CPU would take hours for these sizes; use --quick, or --predict"
        )
    absent = rivals.missing()
    for name, reason in absent.items():
        print(f"not timed: {name}: {reason}")
    rows = []
    for spec in cases:
        for function in (ours, theirs):
            for result in function(spec, options.repetitions):
                rows.append(result)
                show(result)
    path = options.out or (None if options.quick else RESULTS / ("kernels_" + file_name(kind)))
    if path:
        note = {
            "device": kind,
            "jax": jax.__version__,
            "date": datetime.date.today().isoformat(),
            "not_timed": absent,
        }
        write(path, note, rows)


def write(path: pathlib.Path, note: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({**note, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
