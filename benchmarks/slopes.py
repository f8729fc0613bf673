"""How time and temporaries of a training step grow with the length of the text, for every mixer.

    python -m benchmarks.slopes [--only=mamba,retnet] [--lengths=256,512,1024,2048,4096]

A step is forward and backward of two blocks of one mixer, D 128, batch 1. The exponent is the slope
of a line through the logarithms: 1 is linear in T, 2 quadratic; what does not depend on T makes it
smaller. Temporaries are what XLA plans for the compiled step.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xlstm_jax.models import ModelConfig, build_model, mixers

LENGTHS = (256, 512, 1024, 2048, 4096)
SIZES = {"vocab_size": 64, "dim": 128, "num_blocks": 2}
NO_MEMORY = ("mlp", "rwkv4_channel")  # they look at one token, or at two


def names() -> tuple[str, ...]:
    """The mixers that carry something along the text, in the order of their table."""
    return tuple(name for name in mixers.names() if name not in NO_MEMORY)


def slope_of(
    name: str, lengths: Sequence[int] = LENGTHS, repetitions: int = 5, **sizes: int
) -> dict[str, Any]:
    """Median seconds and bytes of temporaries of a step by length, and their exponents.

    The lengths take turns, so that what else the machine does falls on all of them alike.
    """
    config = ModelConfig(blocks=name, **SIZES | sizes)
    model = build_model(config)
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    params = nn.meta.unbox(init())

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(model.apply(params, tokens, method="hidden", train=True)[0]))

    steps, temporaries = {}, []
    for length in lengths:
        tokens = jnp.zeros((1, length), jnp.int32) + jnp.arange(length) % config.vocab_size
        compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
        steps[length] = lambda compiled=compiled, tokens=tokens: compiled(params, tokens)
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for repetition in range(repetitions + 1):
        for length, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            if repetition:
                times[length].append(time.perf_counter() - start)
    medians = [statistics.median(times[length]) for length in lengths]
    jax.clear_caches()
    return {
        "mixer": name,
        "lengths": list(lengths),
        "seconds": medians,
        "temporaries": temporaries,
        "exponent": {
            "seconds": exponent(lengths, medians),
            "temporaries": exponent(lengths, temporaries),
        },
    }


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """a of the best c T^a."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def heading(lengths: Sequence[int]) -> str:
    """The first two lines of the table."""
    texts = [f"ms at T {length:,}" for length in lengths]
    columns = ["mixer", *texts, "exponent", f"MiB at T {lengths[-1]:,}", "exponent"]
    return f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}"


def line(row: dict[str, Any]) -> str:
    """A mixer's line of the table."""
    cells = [
        row["mixer"],
        *(f"{1e3 * seconds:,.1f}" for seconds in row["seconds"]),
        f"{row['exponent']['seconds']:.2f}",
        f"{row['temporaries'][-1] / 2**20:,.1f}",
        f"{row['exponent']['temporaries']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(only: Sequence[str], lengths: Sequence[int], repetitions: int) -> list[dict[str, Any]]:
    """Prints a line as soon as it is measured; returns the rows."""
    print(heading(lengths), flush=True)
    rows = []
    for name in only:
        rows.append(slope_of(name, lengths, repetitions))
        print(line(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=names())
    parser.add_argument(
        "--lengths", type=lambda text: [int(part) for part in text.split(",")], default=LENGTHS
    )
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    table(arguments.only, arguments.lengths, arguments.repetitions)


if __name__ == "__main__":
    main()
