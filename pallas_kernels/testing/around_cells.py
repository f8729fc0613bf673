"""Calls of `mlstm_front` and `mlstm_back` with random inputs: values and gradients of a backend,
and how far they are from those of the definition in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}  # of an array's largest entry


def draw_front(
    batch: int = 2,
    time: int = 9,
    channels: int = 24,
    size: int = 4,
    gates: int = 6,
    *,
    dtype: str = "float64",
) -> dict[str, np.ndarray]:
    """Arguments in float64, whose numbers the type can hold."""
    rng = np.random.default_rng(0)
    shapes = {
        **dict.fromkeys(("c", "u"), (batch, time, channels)),
        **dict.fromkeys(("query", "key", "value"), (channels // size, size, size)),
        "gate_kernel": (3 * channels, gates),
        "gate_bias": (gates,),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["gate_kernel"] /= 8
    return _held(arrays, dtype)


def draw_back(
    batch: int = 2,
    time: int = 9,
    heads: int = 2,
    head_dim: int = 12,
    *,
    skip: bool = True,
    dtype: str = "float64",
) -> dict[str, np.ndarray]:
    """Arguments in float64, whose numbers the type can hold; the heads' means are not 0, and no two
    heads are alike large.
    """
    rng = np.random.default_rng(0)
    inner, channels = (batch, time, heads * head_dim), (heads * head_dim,)
    shapes = {"h": (batch, time, heads, head_dim), "scale": channels, "gate": inner}
    if skip:
        shapes |= {"c": inner, "skip": channels}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays["h"] = (arrays["h"] + 2) * np.exp(rng.normal(size=(batch, time, heads, 1)))
    return _held(arrays, dtype)


def _held(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    held = jnp.dtype(dtype)  # numpy's own types, and jax's bfloat16
    return {name: x.astype(held).astype(np.float64) for name, x in arrays.items()}


def values_and_gradients(
    op: Callable, arrays: Mapping[str, Any], **options: Any
) -> dict[str, jax.Array]:
    """All results, and the gradients of a weighted sum of them."""
    rng = np.random.default_rng(2)

    def loss(arrays: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = op(**arrays, **options)
        results = found._asdict() if isinstance(found, tuple) else {"y": found}
        total = sum(
            jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)) * rng.normal(size=x.shape))
            for x in results.values()
        )
        return total, results

    gradients, results = jax.jit(jax.grad(loss, has_aux=True))(dict(arrays))
    return results | {f"d {name}": x for name, x in gradients.items()}


def exact(op: Callable, arrays: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """The definition's values and gradients in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = values_and_gradients(op, arrays, backend="reference", **options)
        return {name: np.asarray(x) for name, x in found.items()}


def errors(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of each array, of its largest entry; NaN is infinitely far away."""
    of: dict[str, float] = {}
    for name, x in expected.items():
        x, other = (np.asarray(array, np.float64) for array in (x, found[name]))
        error = np.abs(other - x).max() / np.abs(x).max()
        of[name] = float(np.where(np.isnan(error), np.inf, error))
    return of
