"""What rounding C to bfloat16 costs over a long sequence: a kernel, interpreted on the CPU, against
float64.

    python -m benchmarks.long_sequences     # 65,536 tokens, minutes; the table of docs/kernels.md
    python -m benchmarks.long_sequences --backend=pallas_tpu --chunk-size=512

"pallas_triton" and "pallas_gpu" round at the same places: C and dC stay float32 from chunk to
chunk, and their copies that enter products, the weighted keys and queries that are added to them,
and the weights within a chunk are rounded to the type of the inputs. So the interpreted Triton
kernels speak for both. Errors are root mean squares relative to the exact array's; one rounding to
bfloat16 is 1.7e-3.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import mlstm
from pallas_kernels.interpret import interpreted

DIM = 64
NAMES = ("h", "dq", "dk", "dv", "di", "df")


def inputs(time: int, forget_bias: float) -> tuple[list[np.ndarray], np.ndarray]:
    """(q, k, v, i, f, cotangent of h) of one head, those of the kernel's type rounded to it."""
    r = np.random.default_rng(0)
    q, k, v, cotangent = (
        np.asarray(jnp.asarray(r.normal(size=(1, time, 1, DIM)), jnp.bfloat16), np.float64)
        for _ in range(4)
    )
    i, f = (r.normal(size=(1, time, 1)).astype(np.float32).astype(np.float64) for _ in range(2))
    return [q, k, v, i, f + forget_bias], cotangent


def run(
    backend: str,
    arrays: list[np.ndarray],
    cotangent: np.ndarray,
    dtype: str,
    gradients: bool,
    **options: object,
) -> list[np.ndarray]:
    """h and, if asked for, the gradients of all inputs; gates in float32, or float64 where the rest
    is.
    """
    gate = "float64" if dtype == "float64" else "float32"
    typed = [jnp.asarray(x, dtype if n < 3 else gate) for n, x in enumerate(arrays)]

    def values(weights: jax.Array, *x: jax.Array) -> list[jax.Array]:
        h, pull = jax.vjp(lambda *x: mlstm(*x, backend=backend, **options)[0], *x)
        return [h, *pull(weights)] if gradients else [h]

    return [
        np.asarray(x, np.float64) for x in jax.jit(values)(jnp.asarray(cotangent, dtype), *typed)
    ]


def errors(
    time: int,
    forget_bias: float,
    *,
    gradients: bool = False,
    dtype: str = "bfloat16",
    backend: str = "pallas_triton",
    chunk_size: int = 128,
) -> dict[str, list[float]]:
    """Array -> relative error of each quarter of the sequence. Forget biases 3, 6, 9, 12 remember
    20, 400, 8000, 160000 tokens.
    """
    arrays, cotangent = inputs(time, forget_bias)
    with jax.enable_x64(True):
        exact = run("chunkwise", arrays, cotangent, "float64", gradients)
    with interpreted(True):
        got = run(backend, arrays, cotangent, dtype, gradients, chunk_size=chunk_size)

    def size(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x))))

    quarters = [slice(n * time // 4, (n + 1) * time // 4) for n in range(4)]
    return {
        name: [size((x - y)[:, at]) / size(y[:, at]) for at in quarters]
        for name, x, y in zip(NAMES, got, exact, strict=False)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", type=int, default=65_536)
    parser.add_argument(
        "--backend", choices=("pallas_triton", "pallas_tpu"), default="pallas_triton"
    )
    parser.add_argument("--chunk-size", type=int, default=128)
    options = vars(parser.parse_args())
    time = options.pop("time")
    print(
        "| forget gate's bias | type | array | first quarter | second | third | last "
        "|\n|---:|---|---|---:|---:|---:|---:|"
    )
    for bias, dtype in (
        (3, "bfloat16"),
        (6, "bfloat16"),
        (9, "bfloat16"),
        (12, "bfloat16"),
        (6, "float32"),
    ):
        for name, parts in errors(time, bias, dtype=dtype, gradients=bias == 6, **options).items():
            print(
                f"| {bias} | {dtype} | {name} | "
                + " | ".join(f"{part:.1e}" for part in parts)
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
