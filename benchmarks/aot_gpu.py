"""Compiles every GPU kernel for GPUs that are not there, to machine code, and reports what ptxas
says of each.

  pip install "jax[cuda13]" jaxtyping    # an environment of its own, about 4 GB; no GPU is needed
  python -m benchmarks.aot_gpu           # all that changed since the report: docs/aot_gpu.md
  python -m benchmarks.aot_gpu --only mlstm/pallas_triton/a100    # those with this in their names

With another jax, here that of a GPU machine, on the same CUDA wheels:

  pip install --no-deps --target DIR jax==0.11.2 jaxlib==0.11.2 \\
      jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2
  PYTHONPATH=DIR:. python -m benchmarks.aot_gpu --only h200 --again --keep OTHER_DIR

A case is one value and gradient of all inputs, so that it has the forward and the backward kernels,
at one of the paper's shapes. The report tells, per kernel: registers per thread, bytes spilled to
local memory, shared memory per block, and how many tensor core instructions its PTX has: WGMMA
(Hopper's, a warpgroup at once) and MMA (one warp at a time). It says nothing about speed. Every
case is compiled by a process of its own: a compiler that crashes fails one case. What is known is
in benchmarks/results/aot_gpu.json, with a hash of the kernels' code: a case is compiled again when
that or jax changes, or with --again.
"""

import argparse
import ast
import collections
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine_code import Kernel, mosaic_kernels, triton_kernels

TARGETS = {
    path.stem: path
    for path in sorted(Path(__file__).parents[1].glob("xlstm_jax/parallel/gpu_targets/*.pbtxt"))
}
ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "aot_gpu.md"
RESULTS = ROOT / "benchmarks" / "results" / "aot_gpu.json"

# (heads, K, V): the paper's 125M, 350M, 760M, 1.3B models, and xLSTM 7B; then narrow heads and
# those of the published kernel timings.
MLSTM_SHAPES = (
    (4, 384, 384),
    (4, 512, 512),
    (4, 768, 768),
    (4, 1024, 1024),
    (8, 256, 512),
    (16, 128, 256),
    (12, 64, 64),
)
SLSTM_SHAPES = ((4, 192), (4, 256), (4, 384), (4, 512), (12, 64), (48, 16))  # (heads, V)
AROUND = ("mlstm_front", "mlstm_back", "row_norm")
AROUND_SHAPES = ((4, 384), (8, 512), (4, 1024))  # (heads, V), whose product are the channels
TOKENS, TIME = 65_536, 2048
SLSTM_BATCH = 16
# Others: bfloat16. On Hopper pallas_triton serves float32, which pallas_gpu refuses, and refuses
# most bfloat16.
DTYPES = {
    "mlstm/pallas_triton/a100": ("bfloat16", "float32"),
    "mlstm/pallas_triton/h100": ("float32",),
    "mlstm/pallas_triton/h200": ("float32",),
} | {f"{op}/pallas_triton/{target}": ("bfloat16", "float32") for op in AROUND for target in TARGETS}


class Case(NamedTuple):
    op: str
    backend: str
    target: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return "/".join(
            (self.op, self.backend, self.target, self.dtype, "x".join(map(str, self.shape)))
        )


def cases() -> list[Case]:
    """All cases of the backends that this version has: Mosaic GPU's for Hopper only."""
    from pallas_kernels.mlstm.api import BACKENDS as mlstm_backends
    from pallas_kernels.slstm.api import BACKENDS as slstm_backends

    found = []
    for op, backends, shapes in (
        ("mlstm", mlstm_backends, MLSTM_SHAPES),
        ("slstm", slstm_backends, SLSTM_SHAPES),
    ):
        for backend in ("pallas_gpu", "pallas_triton"):
            for target in TARGETS if backend in backends else ():
                if backend == "pallas_gpu" and target == "a100":
                    continue
                found += _cases(op, backend, target, shapes)
    for op, target in itertools.product(AROUND, TARGETS):
        found += _cases(op, "pallas_triton", target, AROUND_SHAPES)
    return found


def _cases(op: str, backend: str, target: str, shapes: Iterable[tuple[int, ...]]) -> list[Case]:
    dtypes = DTYPES.get(f"{op}/{backend}/{target}", ("bfloat16",))
    return [Case(op, backend, target, dtype, shape) for dtype in dtypes for shape in shapes]


Arguments = tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype) of each


def _program(case: Case) -> tuple[Any, Arguments]:
    """A function and its arguments: all gradients of one call, through the outputs and the last
    state; integers have none.
    """
    import jax
    import jax.numpy as jnp

    call, arguments = _CALLS[case.op](case)

    def loss(*arrays: Any) -> jax.Array:
        results = jax.tree.leaves(call(*arrays, backend=case.backend))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in results)

    floats = [i for i, (_, dtype) in enumerate(arguments) if dtype != "int32"]
    return jax.value_and_grad(loss, argnums=floats), arguments


def _mlstm(case: Case) -> tuple[Any, Arguments]:
    from pallas_kernels import MLSTMState, mlstm

    heads, K, V = case.shape
    B = TOKENS // TIME
    tokens = (((B, TIME, heads, K), case.dtype),) * 2 + (((B, TIME, heads, V), case.dtype),)
    gates = (((B, TIME, heads), "float32"),) * 2
    state = (((B, heads, K, V), "float32"), ((B, heads, K), "float32"), ((B, heads), "float32"))

    def call(q, k, v, i, f, C, n, m, ids, backend):
        state = MLSTMState(C, n, m)
        h, (C, n, _) = mlstm(q, k, v, i, f, state, segment_ids=ids, backend=backend)
        return h, C, n

    return call, (*tokens, *gates, *state, ((B, TIME), "int32"))


def _slstm(case: Case) -> tuple[Any, Arguments]:
    from pallas_kernels import SLSTMState, slstm

    heads, V = case.shape
    B = SLSTM_BATCH
    weights = (((4, heads, V, V), case.dtype), ((4, heads, V), "float32"))
    state = (((B, heads, V), "float32"),) * 4

    def call(x, R, bias, c, n, h, m, ids, backend):
        state = SLSTMState(c, n, h, m)
        h, (c, n, *_) = slstm(x, R, bias, state, segment_ids=ids, backend=backend)
        return h, c, n

    return call, (((B, TIME, 4, heads, V), case.dtype), *weights, *state, ((B, TIME), "int32"))


def _front(case: Case) -> tuple[Any, Arguments]:
    from pallas_kernels.mlstm_front import mlstm_front

    (heads, V), dtype = case.shape, case.dtype
    channels, gates = heads * V, 2 * heads
    inner = ((TOKENS // TIME, TIME, channels), dtype)
    blocks = ((channels // 4, 4, 4), dtype)
    weights = (*[blocks] * 3, ((3 * channels, gates), dtype), ((gates,), dtype))
    return mlstm_front, (inner, inner, *weights)


def _back(case: Case) -> tuple[Any, Arguments]:
    from pallas_kernels.mlstm_back import mlstm_back

    (heads, V), dtype, B = case.shape, case.dtype, TOKENS // TIME
    inner, of_channels = ((B, TIME, heads * V), dtype), ((heads * V,), dtype)
    arguments = (((B, TIME, heads, V), dtype), of_channels, inner, inner, of_channels)
    return functools.partial(mlstm_back, eps=1e-5, activation="silu"), arguments


def _norm(case: Case) -> tuple[Any, Arguments]:
    from pallas_kernels.row_norm import row_norm

    (heads, V), dtype = case.shape, case.dtype
    arguments = (((TOKENS, heads * V), dtype), ((heads * V,), dtype))
    return functools.partial(row_norm, eps=1e-5, center=True), arguments


# op -> what is called with the case's backend, and the arguments
_CALLS = {
    "mlstm": _mlstm,
    "slstm": _slstm,
    "mlstm_front": _front,
    "mlstm_back": _back,
    "row_norm": _norm,
}


def _compile(case: Case) -> None:
    """Compiles one case; the compilers leave their files where the environment says."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    text = TARGETS[case.target].read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=case.target, topology="1x1x1", target_config=text
    )
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("gpu",))
    on_gpu = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    function, arguments = _program(case)
    with jax.set_mesh(mesh):
        jax.jit(function).lower(
            *(jax.ShapeDtypeStruct(*x, sharding=on_gpu) for x in arguments)
        ).compile()


def _run(case: Case, keep: str | None) -> tuple[list[Kernel], str]:
    """(kernels, error) of one case, from a process of its own; error is the last line it wrote, or
    ""
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(keep or folder)
        mosaic, xla = folder / "mosaic", folder / "xla"
        mosaic.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached kernel leaves no files
            "MOSAIC_GPU_DUMP_TO": str(mosaic),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={xla} "
            "--xla_dump_emitter_re=ptx",
        }
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.aot_gpu",
            "--compile",
            json.dumps(case),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [
                line
                for line in done.stderr.strip().splitlines()
                if line and not line.startswith(("--", "For simplicity"))
            ]
            return [], (lines or [f"exit status {done.returncode}"])[-1]
        return sorted(triton_kernels(xla, case.op) + mosaic_kernels(mosaic)), ""


def _sources(case: Case) -> str:
    """A hash of jax's version and of the files that make a case's kernels, without their comments
    and docstrings.
    """
    folder = ROOT / "pallas_kernels" / case.op
    files = [*sorted(folder.glob(f"{case.backend}*.py")), *sorted(folder.glob("gates.py"))]
    files += [*sorted(folder.glob("exponents.py")), ROOT / "pallas_kernels" / "rounding.py"]
    files += sorted((ROOT / "pallas_kernels").glob("triton_*.py")) if case.op in AROUND else []
    text = importlib.metadata.version("jax") + "".join(_code(path.read_text()) for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _load() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _save(known: dict[str, dict[str, Any]]) -> None:
    """One line per case, and the report."""
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(known.items())]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    REPORT.write_text(_report(known))


def _report(known: dict[str, dict[str, Any]]) -> str:
    """Of all cases that were compiled; those of earlier sources are marked."""
    results = {case: known[str(case)] for case in cases() if str(case) in known}
    earlier = {case for case, result in results.items() if result["sources"] != _sources(case)}
    kernels = [Kernel(*kernel) for result in results.values() for kernel in result["kernels"]]
    spills = sum(kernel.spilled > 0 for kernel in kernels)
    failed = sum(bool(result["error"]) for result in results.values())
    jax_version = importlib.metadata.version("jax")
    lines = [
        "# GPU kernels, compiled without a GPU",
        "",
        f"Written by `make aot-gpu` (`python -m benchmarks.aot_gpu`), jax {jax_version}: "
        f"{len(results)} of {len(cases())} programs, {len(kernels)} kernels, {spills} with spills; "
        f"{failed} programs failed. {len(earlier)} programs, marked (earlier), are of a version "
        "before the present one; `make aot-gpu` compiles them again.",
        "",
        "Each program is a call at batch x time = 65,536 tokens (sLSTM: batch 16) with all "
        "gradients; T = 2048. WGMMA and MMA count tensor core instructions in the PTX; shared "
        "memory is what one block asks for, registers are one thread's. Times x: so many kernels "
        "of the program that differ only in what they are called with. This says nothing about "
        "speed.",
    ]
    title = None
    for case, result in results.items():
        if title != (title := f"{case.op} `{case.backend}`, {case.target.upper()}"):
            head = "heads, K, V" if case.op == "mlstm" else "heads, V"
            lines += [
                "",
                f"## {title}",
                "",
                f"| {head} | dtype | kernel | registers | spilled bytes | shared bytes "
                "| WGMMA | MMA |",
            ]
            lines += ["|---|---|---|---:|---:|---:|---:|---:|"]
        shape = ", ".join(map(str, case.shape)) + (" (earlier)" if case in earlier else "")
        if result["error"]:
            reason = result["error"][:300].replace("|", "/")
            lines.append(f"| {shape} | {case.dtype} | failed: {reason} | | | | | |")
        for (name, *numbers), times in collections.Counter(map(tuple, result["kernels"])).items():
            name = f"{name} x {times}" if times > 1 else name
            lines.append(
                f"| {shape} | {case.dtype} | {name} | " + " | ".join(map(str, numbers)) + " |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default="",
        help="a regular expression that a case's name op/backend/target/dtype/shape must match",
    )
    parser.add_argument("--again", action="store_true", help="compile also what is known")
    parser.add_argument(
        "--keep",
        help="a folder for the compilers' files, of one case at a time; the report is not written",
    )
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compile:
        *names, shape = json.loads(arguments.compile)
        _compile(Case(*names, tuple(shape)))
        return 0
    bad = 0
    for case in cases():
        sources = _sources(case)
        known = _load().get(str(case), {})
        fresh = (
            known.get("sources") == sources
            and not known["error"]
            and not arguments.again
            and not arguments.keep
        )
        if fresh or not re.search(arguments.only, str(case)):
            continue
        begin = time.perf_counter()
        kernels, error = _run(case, arguments.keep)
        print(
            f"{case}: {error or f'{len(kernels)} kernels'}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
        for kernel in kernels:
            print(
                "   ", *(f"{name} {value}" for name, value in kernel._asdict().items()), flush=True
            )
        bad += bool(error) or any(kernel.spilled for kernel in kernels)
        if not arguments.keep:
            _save(_load() | {str(case): {"sources": sources, "kernels": kernels, "error": error}})
    if not arguments.keep:
        _save(_load())
        print(f"wrote {REPORT}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
