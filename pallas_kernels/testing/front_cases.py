"""Calls of `mlstm_front` with random inputs: values and gradients of a backend, and how far they
are from those of the definition in float64.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.mlstm_front import mlstm_front

TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}  # of an array's largest entry


def draw(
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
    held = jnp.dtype(dtype)  # numpy's own types, and jax's bfloat16
    return {name: x.astype(held).astype(np.float64) for name, x in arrays.items()}


def values_and_gradients(arrays: Mapping[str, Any], **options: Any) -> dict[str, jax.Array]:
    """All results, and the gradients of a weighted sum of them."""
    rng = np.random.default_rng(2)

    def loss(arrays: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        results = mlstm_front(**arrays, **options)._asdict()
        total = sum(
            jnp.sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)) * rng.normal(size=x.shape))
            for x in results.values()
        )
        return total, results

    gradients, results = jax.jit(jax.grad(loss, has_aux=True))(dict(arrays))
    return results | {f"d {name}": x for name, x in gradients.items()}


def exact(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The definition's values and gradients in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = values_and_gradients(arrays, backend="reference")
        return {name: np.asarray(x) for name, x in found.items()}


def errors(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of each array, of its largest entry; NaN is infinitely far away."""
    of: dict[str, float] = {}
    for name, x in expected.items():
        x, other = (np.asarray(array, np.float64) for array in (x, found[name]))
        error = np.abs(other - x).max() / np.abs(x).max()
        of[name] = float(np.where(np.isnan(error), np.inf, error))
    return of
