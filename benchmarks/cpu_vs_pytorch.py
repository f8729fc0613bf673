"""Tokens/s of a training step on the CPU: this project beside PyPI `xlstm` (PyTorch), the same
model with the same parameters.

    make benchmark-cpu        (in the environment of `make parity`)

A step is forward, backward and AdamW. Ours runs twice, both as train.py would: over one JAX device
for the whole machine, and over one device for each core (JAX_NUM_CPU_DEVICES=2 python train.py ...,
the batch dealt out along the mesh's data axis). Logits and losses are compared before anything is
timed; then steps of all sides alternate, and the medians are reported, with the share of the
machine's measured matrix-product rate that the model's products take.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.originals import ours, paper, paper_model, tensors_of
from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.parallel import batch_sharding, make_mesh, replicated
from xlstm_jax.parallel.mesh import MeshConfig
from xlstm_jax.tasks.cross_entropy import cross_entropy_sum

CORES, BATCH, RATE = 2, 8, 1e-3
ONE, PER_CORE = "one device", "a device per core"
OURS = {ONE: 1, PER_CORE: CORES}
CASES = [
    ("[1:0]", "mlstm", 256),
    ("[1:0]", "mlstm", 1024),
    ("[3:1]", "mlstm,slstm+mlp,2*mlstm", 256),
]
RESULT = pathlib.Path(__file__).parent / "results" / "cpu_vs_pytorch.json"


def matrix_product_rate() -> float:
    """FLOP/s of a float32 product of two 2048 x 2048 matrices in JAX: the best of ten."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = min(seconds(lambda: product(a, a).block_until_ready()) for _ in range(10))
    return 2 * 2048**3 / best


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def jax_step(model, variables, tokens, targets, devices: int):
    """A function that does one training step over so many devices and waits for it."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    tokens, targets = jax.device_put((tokens, targets), batch_sharding(mesh, *tokens.shape))
    optimizer = optax.adamw(RATE, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1)
    mask = np.ones(targets.shape, bool)

    def loss(params):
        logits, _ = model.apply(params, tokens)
        return cross_entropy_sum(logits, targets, mask) / targets.size

    def step(params, opt_state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    variables = jax.device_put(jax.tree.map(jnp.array, variables), replicated(mesh))
    carry = [variables, jax.device_put(optimizer.init(variables), replicated(mesh))]

    def run() -> float:
        with jax.set_mesh(mesh):
            *carry[:], value = step(*carry)
        return float(value)

    return run


def torch_step(model, tokens, targets):
    """The same in PyTorch."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1
    )
    tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)
    model.train()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def compare(name: str, blocks: str, context: int, repetitions: int, rate: float) -> dict:
    """One row of the table; raises AssertionError where the two sides do not compute the same."""
    config = ModelConfig(vocab_size=320, dim=256, num_blocks=4, blocks=blocks)
    theirs = paper_model(seed=0, **paper.export_config(config, context_length=context))
    model, variables = ours(paper, config, tensors_of(theirs))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, context + 1))
    tokens, targets = tokens[:, :-1], tokens[:, 1:]

    logits, _ = jax.jit(model.apply)(variables, tokens)
    with torch.no_grad():
        np.testing.assert_allclose(
            logits, theirs(torch.from_numpy(tokens)).numpy(), rtol=0, atol=1e-4
        )
    runs = {
        side: jax_step(model, variables, tokens, targets, devices) for side, devices in OURS.items()
    }
    runs["xlstm"] = torch_step(theirs, tokens, targets)
    # the second after one update: gradients and AdamW too (theirs decays all parameters alike)
    for tolerance in (1e-4, 1e-3):
        losses = {side: run() for side, run in runs.items()}
        for side in OURS:
            np.testing.assert_allclose(losses[side], losses["xlstm"], rtol=tolerance, err_msg=side)

    times = {side: [] for side in runs}
    for _ in range(repetitions):
        for side, run in runs.items():
            times[side].append(seconds(run))
    speed = {side: BATCH * context / statistics.median(values) for side, values in times.items()}
    return {
        "model": name,
        "context": context,
        "tokens_per_second": speed,
        "ratio": {side: speed[side] / speed["xlstm"] for side in OURS},
        "share_of_matrix_product_rate": speed[PER_CORE]
        * training_flops_per_token(build_model(config), context)
        / rate,
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(CORES)
    jax.config.update("jax_num_cpu_devices", CORES)
    rate = matrix_product_rate()
    print(
        f"matrix products: {rate / 1e9:.0f} GFLOP/s; {CORES} cores each, D 256, 4 blocks, batch "
        f"{BATCH}, float32; tokens/s\n"
    )
    print(
        f"| model | T | ours, {ONE} | ratio | ours, {PER_CORE} | ratio | PyPI `xlstm` | share of "
        f"the matrix-product rate |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        row = compare(*case, repetitions, rate)
        rows.append(row)
        ours_cells = " | ".join(
            f"{row['tokens_per_second'][side]:,.0f} | {row['ratio'][side]:.1f}" for side in OURS
        )
        print(
            f"| {row['model']} | {row['context']} | {ours_cells} | "
            f"{row['tokens_per_second']['xlstm']:,.0f} "
            f"| {row['share_of_matrix_product_rate']:.0%} |",
            flush=True,
        )
    RESULT.parent.mkdir(exist_ok=True)
    versions = {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        **versions,
    }
    RESULT.write_text(
        json.dumps({"machine": machine, "matrix_product_flops": rate, "rows": rows}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
