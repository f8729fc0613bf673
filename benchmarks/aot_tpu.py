"""Compiles every TPU kernel with libtpu for chips that are not there, and reports VMEM and HBM
traffic of each: docs/aot_tpu.md.

  pip install libtpu                       # in any environment; no TPU is needed
  python -m benchmarks.aot_tpu             # all shapes that are not known yet
  python -m benchmarks.aot_tpu --only v5e/mlstm/7b      # those with this in their names

A case is one value and gradient of all inputs, documents and an initial state included, at one of
the paper's shapes. Its program is traced as for the chip, its Pallas calls are taken out and
compiled one by one (tests/kernels/test_tpu_compile.py compiles whole programs). What is known is in
benchmarks/results/aot_tpu.json: after a change of a kernel, --again. Nothing here says how fast
they run; with LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true" the compiler
leaves each kernel's final schedule in DIR, whose number of bundles
(*schedule-analysis_final_bundles.txt) compares two versions of one.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# or a second process aborts on libtpu's lock
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.extend.core import jaxpr_as_fun

from pallas_kernels import MLSTMState, SLSTMState, mlstm, slstm
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Heads, K, V of the paper's models and of xLSTM 7B; heads and V of their sLSTM blocks, and heads
# that share the lanes of a register.
MLSTM_HEADS = {
    "125m": (4, 384, 384),
    "350m": (4, 512, 512),
    "760m": (4, 768, 768),
    "1.3b": (4, 1024, 1024),
    "2.7b": (4, 1280, 1280),
    "7b": (8, 256, 512),
}
SLSTM_HEADS = {
    "125m": (4, 192),
    "350m": (4, 256),
    "760m": (4, 384),
    "1.3b": (4, 512),
    "narrow": (12, 64),
}
TIMES = (2048, 8192)
SLSTM_BATCH = 16
REPORT = Path(__file__).parent.parent / "docs" / "aot_tpu.md"
RESULTS = Path(__file__).parent / "results" / "aot_tpu.json"

Struct = jax.ShapeDtypeStruct


def mlstm_case(
    model: str,
    time: int,
    dtype: str = "bfloat16",
    *,
    batch: int = 1,
    state: bool = True,
    documents: bool = True,
) -> tuple[Callable, list[Struct]]:
    """A loss on outputs and last state, and its arguments; without `state` neither an initial nor
    the last one is looked at.

    Without `documents` the first argument, segment ids, is not looked at.
    """
    heads, K, V = MLSTM_HEADS[model]
    tokens = [Struct((batch, time, heads, width), dtype) for width in (K, K, V)]
    gates = [Struct((batch, time, heads), jnp.float32)] * 2
    given = (
        [Struct((batch, heads, *shape), jnp.float32) for shape in ((K, V), (K,), ())]
        if state
        else []
    )

    def loss(ids: Any, *x: Any) -> Any:
        h, last = mlstm(
            *x[:5],
            MLSTMState(*x[5:]) if state else None,
            segment_ids=ids if documents else None,
            backend="pallas_tpu",
        )
        return jnp.sum(h.astype(jnp.float32)) + (jnp.sum(last.C) + jnp.sum(last.n) if state else 0)

    return loss, [Struct((batch, time), jnp.int32), *tokens, *gates, *given]


def slstm_case(model: str, time: int, dtype: str = "bfloat16") -> tuple[Callable, list[Struct]]:
    heads, V = SLSTM_HEADS[model]
    x = Struct((SLSTM_BATCH, time, 4, heads, V), dtype)
    weights = [Struct((4, heads, V, V), jnp.float32), Struct((4, heads, V), jnp.float32)]
    given = [Struct((SLSTM_BATCH, heads, V), jnp.float32)] * 4

    def loss(ids: Any, x: Any, R: Any, bias: Any, *state: Any) -> Any:
        h, last = slstm(x, R, bias, SLSTMState(*state), segment_ids=ids, backend="pallas_tpu")
        return jnp.sum(h.astype(jnp.float32)) + jnp.sum(last.c)

    return loss, [Struct((SLSTM_BATCH, time), jnp.int32), x, *weights, *given]


def front_case(model: str, time: int, dtype: str = "bfloat16") -> tuple[Callable, list[Struct]]:
    """`mlstm_front` of one sequence, with blocks of 4 channels, as `mlstm_case`."""
    heads, _, V = MLSTM_HEADS[model]
    channels, gates = heads * V, 2 * heads
    inner, matrix = (1, time, channels), (channels // 4, 4, 4)
    arguments = [Struct(inner, dtype)] * 2 + [Struct(matrix, jnp.float32)] * 3
    arguments += [Struct((3 * channels, gates), jnp.float32), Struct((gates,), jnp.float32)]

    def loss(*x: Any) -> Any:
        front = mlstm_front(*x, backend="pallas_tpu")
        return sum(jnp.sum(jnp.sin(array.astype(jnp.float32))) for array in front)

    return loss, arguments


def back_case(model: str, time: int, dtype: str = "bfloat16") -> tuple[Callable, list[Struct]]:
    """`mlstm_back` of one sequence, as `mlstm_case`: the 7B block's or the paper's."""
    heads, _, V = MLSTM_HEADS[model]
    row, inner = Struct((heads * V,), jnp.float32), Struct((1, time, heads * V), dtype)
    arguments = [Struct((1, time, heads, V), dtype), row, inner]
    if model != "7b":
        arguments += [inner, row]
    activation = "sigmoid" if model == "7b" else "silu"

    def loss(*x: Any) -> Any:
        y = mlstm_back(*x, eps=1e-6, activation=activation, backend="pallas_tpu")
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    return loss, arguments


def gradient(loss: Callable, arguments: list[Struct]) -> Callable:
    """By all that are no segment ids."""
    numbers = [n for n, x in enumerate(arguments) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jax.grad(loss, argnums=numbers)


@functools.cache
def chip_mesh(chip: str) -> jax.sharding.Mesh:
    """One chip of that kind. Raises ImportError or RuntimeError where there is no libtpu."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    return jax.sharding.Mesh(np.array(topology.devices[:1]), ("chip",))


def lowered(function: Callable, arguments: list[Struct], chip: str) -> Any:
    """The program of a function of arrays for that chip; `.compile()` hands it to the chip's
    compiler.
    """
    mesh = chip_mesh(chip)
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = [Struct(x.shape, x.dtype, sharding=here) for x in arguments]
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of its loops, branches and kernels included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = parameter if hasattr(parameter, "eqns") else getattr(parameter, "jaxpr", None)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def pallas_calls(
    function: Callable, arguments: list[Struct], device_kind: str = "TPU v5 lite"
) -> dict[str, Any]:
    """The Pallas calls of the program of a function, traced as for a TPU, by their names. Needs no
    libtpu.
    """
    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        program = jax.jit(function).trace(*arguments).jaxpr
    return {
        call.params["name"]: call
        for call in equations(program.jaxpr)
        if call.primitive.name == "pallas_call"
    }


def compile_call(call: Any, chip: str, vmem_limit: int | None = None) -> Any:
    """One Pallas call alone; vmem_limit is in bytes (None: as the kernel asks for)."""
    parameters = dict(call.params)
    if vmem_limit is not None:
        parameters["compiler_params"] = dataclasses.replace(
            parameters["compiler_params"], vmem_limit_bytes=vmem_limit
        )
    arguments = [Struct(x.aval.shape, x.aval.dtype) for x in call.invars]
    return lowered(lambda *x: call.primitive.bind(*x, **parameters), arguments, chip).compile()


def vmem_needed(call: Any, chip: str) -> float:
    """MiB of VMEM that a call needs: the limit is raised from the scratch's size to what the
    compiler says it lacks until it compiles.
    """
    scratch = [x.aval for x in call.params["jaxpr"].invars][
        -call.params["grid_mapping"].num_scratch_operands :
    ]
    needed = (
        sum(x.size * x.dtype.itemsize for x in scratch if str(x.memory_space) == "vmem") / 2**20
    )
    exceeded = r"Scoped allocation with size ([\d.]+)([KM]) and limit"
    while True:
        try:
            compile_call(call, chip, int((needed + 0.01) * 2**20))
            return needed
        except jax.errors.JaxRuntimeError as error:
            found = re.search(exceeded, str(error))
            if found is None:
                raise
            more = float(found[1]) / (1 if found[2] == "M" else 1024)
            needed = max(more, needed + 0.01)


def traffic(call: Any) -> int:
    """Bytes that a Pallas call moves between HBM and VMEM, from its grid and its blocks.

    A block is moved when its index is not the one of the step before, and once for the first step.
    Operands that stay in HBM are copied by the kernel itself: those of these kernels once from end
    to end, each.
    """
    mapping = call.params["grid_mapping"]
    steps = jnp.asarray(np.stack([axis.ravel() for axis in np.indices(mapping.grid)]), jnp.int32)
    moved = 0
    for block in mapping.block_mappings:
        aval = block.transformed_block_aval
        if str(aval.memory_space) == "any":
            moved += block.array_aval.size * block.array_aval.dtype.itemsize
            continue
        index = jax.vmap(jaxpr_as_fun(block.index_map_jaxpr))(*steps)
        index = np.stack([np.broadcast_to(np.asarray(part), steps.shape[1:]) for part in index])
        times = 1 + np.count_nonzero((index[:, 1:] != index[:, :-1]).any(axis=0))
        moved += int(times) * aval.size * aval.dtype.itemsize
    return int(moved)


def least_traffic(arguments: list[Struct]) -> int:
    """Bytes of one read of q, k, v, i, f and one write of h."""
    _, q, k, v, i, f, *_ = arguments
    return sum(x.size * np.dtype(x.dtype).itemsize for x in (q, k, v, i, f, v))


def cases() -> Iterator[tuple[str, Callable, list[Struct]]]:
    for op, models, case in (
        ("mlstm", MLSTM_HEADS, mlstm_case),
        ("slstm", SLSTM_HEADS, slstm_case),
        ("mlstm_front", MLSTM_HEADS.keys() - {"7b"}, front_case),
        ("mlstm_back", MLSTM_HEADS, back_case),
    ):
        for model in sorted(models, key=list(MLSTM_HEADS | SLSTM_HEADS).index):
            for length in TIMES:
                yield f"{op}/{model}/T{length}", *case(model, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        default="",
        help="a regular expression: cases with this in their names, as v5e/mlstm/7b/T2048",
    )
    parser.add_argument("--again", action="store_true", help="compile what is known, too")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name, loss, arguments in cases():
        chips = [chip for chip in CHIPS if re.search(options.only, f"{chip}/{name}")]
        known = results.setdefault(name, {})
        if (
            all(chip in kernel["vmem"] for chip in chips for kernel in known.values())
            and known
            and not options.again
        ):
            continue
        for kernel, call in pallas_calls(gradient(loss, arguments), arguments).items():
            found = known.setdefault(kernel, {"vmem": {}})
            found |= {"grid": call.params["grid_mapping"].grid, "bytes": traffic(call)}
            for chip in chips:
                if chip not in found["vmem"] or options.again:
                    start = time.time()
                    found["vmem"][chip] = round(vmem_needed(call, chip), 2)
                    print(
                        (
                            f"{chip}/{name}: {kernel} needs {found['vmem'][chip]} MiB of VMEM "
                            f"({time.time() - start:.0f} s)"
                        ),
                        flush=True,
                    )
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                    REPORT.write_text(report(results))


def report(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# TPU kernels, compiled without a TPU",
        "",
        (
            f"By `python -m benchmarks.aot_tpu` with jax {jax.__version__} and libtpu "
            f"{importlib.metadata.version('libtpu')}: the kernels at"
        ),
        (
            "the paper's shapes in bfloat16 (sLSTM: 16 sequences; others: 1), the cells with an "
            "initial state and documents, and all gradients. VMEM is what"
        ),
        (
            "the compiler needs, in MiB, found by taking the limit down to it; the kernels set "
            "theirs to 56, for a v5p has 64. HBM is what a"
        ),
        "call moves between HBM and VMEM, from its blocks. An empty cell was not compiled yet.",
        "",
        f"| case | kernel | grid | {' | '.join(f'VMEM {chip}' for chip in CHIPS)} | HBM, MB |",
        "|---|---|---|" + "---:|" * (len(CHIPS) + 1),
    ]
    for name, kernels in results.items():
        for kernel, found in kernels.items():
            vmem = " | ".join(
                f"{found['vmem'][chip]:.1f}" if chip in found["vmem"] else "" for chip in CHIPS
            )
            lines.append(
                f"| {name} | {kernel} | {' x '.join(map(str, found['grid']))} | {vmem} | "
                f"{found['bytes'] / 1e6:.1f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
