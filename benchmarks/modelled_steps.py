"""The step model beside what an H100 took: compiles the programs that were measured for an H100
that is not there, and prints what xlstm_jax.analysis.compiled says of each.

  python -m benchmarks.modelled_steps              # an environment with jax[cuda13], see aot_gpu
  python -m benchmarks.modelled_steps --only 125m  # those with this in their names
  python -m benchmarks.modelled_steps --texts DIR  # keeps the programs, and takes what is there

Measured figures: one NVIDIA H100 80GB HBM3, jax 0.11.2, 2026-11-26, commit f0b217f. The rates of
the model were fitted to the two training steps alone (`rates`); of the sLSTM, its forward pass.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.inference import SIZES
from benchmarks.kernels import programs
from benchmarks.train_step import STEPS
from pallas_kernels.testing.specs import Spec
from xlstm_jax.analysis.compiled.program import read_program
from xlstm_jax.analysis.compiled.step_model import StepModel, model_of
from xlstm_jax.config import load
from xlstm_jax.generation import GREEDY, decode, session
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.parallel.topology import absent_devices
from xlstm_jax.parallel.xla_flags import WRITING, compiler_options
from xlstm_jax.training.aot import compiled_step

TOPOLOGY, DEVICE = "h100:1x1x1", "NVIDIA H100"
PROMPT = session.PIECE * session.PIECES  # tokens that are read at once


class Case(NamedTuple):
    """A program.

    Attributes:
        measured: milliseconds; None where nobody has measured it.
        compiled: makes the program.
        runs: how often the measurement ran it.
    """

    measured: float | None
    compiled: Callable[[], jax.stages.Compiled]
    runs: int = 1


def training(name: str) -> jax.stages.Compiled:
    """One of the training steps that are measured on a GPU."""
    config, overrides = STEPS[name]
    return compiled_step(load(config, {"model.remat": "block"} | overrides), TOPOLOGY)


def on_chip(
    function: Callable, *arguments: Any, options: dict[str, str] | None = None
) -> jax.stages.Compiled:
    """A jitted function, compiled for one absent H100 with XLA's options."""
    device = absent_devices(TOPOLOGY)[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("gpu",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            [argument() if callable(argument) else argument for argument in arguments],
        )
        return function.lower(*shapes).compile(options)


def served(
    config: ModelConfig, batch: int
) -> tuple[nn.Module, Callable[[], Any], Callable[[], Any]]:
    """The model, and its parameters and empty session as shapes (made under the mesh: the dtype
    depends on the device).
    """
    model = build_model(config)

    def init() -> Any:
        return nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]

    def params() -> Any:
        return jax.eval_shape(lambda: cast_weights(init(), model.config))

    return model, params, lambda: jax.eval_shape(lambda: session.empty_session(model, batch))


def paper(size: str) -> ModelConfig:
    """One of the paper's models, all blocks with a matrix memory."""
    return load(f"configs/xlstm_{size}.py:1_0-15b").model


def decoding(config: ModelConfig, batch: int = 1) -> jax.stages.Compiled:
    """A call that decodes; its loop over tokens counts as one."""
    model, params, start = served(config, batch)
    keys = jax.eval_shape(lambda: row_keys(range(batch)))
    ended, count = jax.ShapeDtypeStruct((batch,), bool), jax.ShapeDtypeStruct((), jnp.int32)
    options = {"space": 64, "sampling": GREEDY}
    function = jax.jit(functools.partial(decode.__wrapped__, model, **options))
    return on_chip(function, params, start, keys, ended, count, options=compiler_options(WRITING))


def prefill(config: ModelConfig) -> jax.stages.Compiled:
    """A piece of a prompt is read."""
    model, params, start = served(config, 1)
    tokens = jax.ShapeDtypeStruct((1, PROMPT), jnp.int32)

    def read(params: Any, before: session.Session, tokens: jax.Array) -> session.Session:
        return session.read_piece.__wrapped__(model, params, before, tokens, None)

    return on_chip(jax.jit(read), params, start, tokens, options=compiler_options(WRITING))


def slstm_cell(heads: int, dim: int, *, backward: bool = True) -> jax.stages.Compiled:
    """The sLSTM alone, batch 16, T 2048, with all gradients."""
    spec = Spec("slstm", T=2048, K=0, V=dim, B=16, H=heads)
    x = jax.ShapeDtypeStruct((16, 2048, 4, heads, dim), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((4, heads, dim, dim), jnp.float32)
    bias = jax.ShapeDtypeStruct((4, heads, dim), jnp.float32)
    h = jax.ShapeDtypeStruct((16, 2048, heads, dim), jnp.bfloat16)
    return on_chip(programs(spec, "pallas_gpu")[backward], (x, kernel, bias), h)


CASES = {
    "125m training, 32 x 2048": Case(600.0, functools.partial(training, "125m [1:0]")),
    "1.42b training, 8 x 8192": Case(1480.0, functools.partial(training, "1.42b as 7b")),
    "7b decoding, batch 1": Case(7.68, lambda: decoding(SIZES["7b"])),
    "7b decoding, batch 16": Case(None, lambda: decoding(SIZES["7b"], 16)),
    "7b decoding, batch 64": Case(None, lambda: decoding(SIZES["7b"], 64)),
    "1.3b decoding, batch 1": Case(None, lambda: decoding(paper("1.3b"))),
    "7b prefill, 8192 tokens": Case(8192 / 36.150, lambda: prefill(SIZES["7b"]), 8192 // PROMPT),
    "slstm 12 x 64, forward": Case(1.737, functools.partial(slstm_cell, 12, 64, backward=False)),
    "slstm 12 x 64": Case(5.66, functools.partial(slstm_cell, 12, 64)),
    "slstm 4 x 192": Case(8.57, functools.partial(slstm_cell, 4, 192)),
}


def modelled(name: str, case: Case, texts: pathlib.Path | None) -> tuple[StepModel, StepModel]:
    """The model of a case's program, compiled or from its file; and of its loops alone."""
    file = texts and texts / f"{name.replace(' ', '_').replace(',', '')}.hlo"
    if file is None or not file.exists():
        text = case.compiled().as_text()
        if file:
            file.write_text(text)
    else:
        text = file.read_text()
    program = read_program(text)
    model = model_of(program, DEVICE)
    looped = {line.name for _, where, line in program.launched() if where != program.entry}
    return model, dataclasses.replace(
        model, kernels=[pair for pair in model.kernels if pair[0].instruction in looped]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--texts", type=pathlib.Path, help="folder of the programs")
    arguments = parser.parse_args()
    if arguments.texts:
        arguments.texts.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        if arguments.only.lower() not in name:
            continue
        model, loop = modelled(name, case, arguments.texts)
        took = model.milliseconds * case.runs
        print(
            f"## {name}: modelled {took:.2f} ms"
            + (f", measured {case.measured:.2f} ({took / case.measured - 1:+.0%})"
               if case.measured else "")
        )  # fmt: skip
        if "decoding" in name:
            token = loop.whole
            print(
                f"each token, without what a call does once: {token.milliseconds:.2f} ms, "
                f"{token.launches} kernels, {token.bytes / 1e9:.1f} GB"
            )
        print(*model.lines(), "", sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
