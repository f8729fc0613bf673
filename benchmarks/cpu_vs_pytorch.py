"""Tokens/s of a training step on the CPU: this project beside PyPI `xlstm` (PyTorch), the same model with the same parameters.

    make benchmark-cpu        (in the environment of `make parity`)

A step is forward, backward and AdamW. Logits and loss are compared before anything is timed; then steps of both sides alternate, and
the medians are reported, with the share of the machine's measured matrix-product rate that the model's products take.
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

from tests.parity.originals import ours, paper, paper_model, tensors_of
from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.config import ModelConfig
from xlstm_jax.training.cross_entropy import cross_entropy_sum

THREADS, BATCH, RATE = 2, 8, 1e-3
CASES = [("[1:0]", (), 256), ("[1:0]", (), 1024), ("[3:1]", (1,), 256)]
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


def jax_step(model, variables, tokens, targets):
    """A function that does one training step and waits for it."""
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
    variables = jax.tree.map(jnp.array, variables)
    carry = [variables, optimizer.init(variables)]

    def run() -> float:
        *carry[:], value = step(*carry)
        return float(value)

    return run


def torch_step(model, tokens, targets):
    """The same in PyTorch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)
    model.train()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def compare(name: str, slstm_positions: tuple[int, ...], context: int, repetitions: int, rate: float) -> dict:
    """One row of the table; raises AssertionError where the two sides do not compute the same."""
    config = ModelConfig(vocab_size=320, dim=256, num_blocks=4, num_heads=4, slstm_positions=slstm_positions)
    theirs = paper_model(seed=0, **paper.export_config(config, context_length=context))
    model, variables = ours(paper, config, tensors_of(theirs))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, context + 1))
    tokens, targets = tokens[:, :-1], tokens[:, 1:]

    logits, _ = jax.jit(model.apply)(variables, tokens)
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs(torch.from_numpy(tokens)).numpy(), rtol=0, atol=1e-4)
    runs = {"ours": jax_step(model, variables, tokens, targets), "xlstm": torch_step(theirs, tokens, targets)}
    first = {side: run() for side, run in runs.items()}
    np.testing.assert_allclose(first["ours"], first["xlstm"], rtol=1e-4)
    second = {side: run() for side, run in runs.items()}  # after one update: gradients and AdamW too (theirs decays all parameters alike)
    np.testing.assert_allclose(second["ours"], second["xlstm"], rtol=1e-3)

    times = {side: [] for side in runs}
    for _ in range(repetitions):
        for side, run in runs.items():
            times[side].append(seconds(run))
    speed = {side: BATCH * context / statistics.median(values) for side, values in times.items()}
    return {
        "model": name,
        "context": context,
        "ours_tokens_per_second": speed["ours"],
        "xlstm_tokens_per_second": speed["xlstm"],
        "ratio": speed["ours"] / speed["xlstm"],
        "share_of_matrix_product_rate": speed["ours"] * training_flops_per_token(config) / rate,
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(THREADS)
    rate = matrix_product_rate()
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s; {THREADS} threads each, D 256, 4 blocks, batch {BATCH}, float32\n")
    print("| model | T | ours, tokens/s | PyPI `xlstm`, tokens/s | ratio | share of the matrix-product rate |")
    print("|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        row = compare(*case, repetitions, rate)
        rows.append(row)
        print(
            f"| {row['model']} | {row['context']} | {row['ours_tokens_per_second']:,.0f} | {row['xlstm_tokens_per_second']:,.0f} "
            f"| {row['ratio']:.1f} | {row['share_of_matrix_product_rate']:.0%} |",
            flush=True,
        )
    RESULT.parent.mkdir(exist_ok=True)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "date": datetime.date.today().isoformat(), **versions}
    RESULT.write_text(json.dumps({"machine": machine, "matrix_product_flops": rate, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
