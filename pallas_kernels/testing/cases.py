"""Inputs of the kernel tests, made with NumPy in float64, and the calls and comparisons that the
tests share.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import MLSTMState, SLSTMState, mlstm, slstm
from pallas_kernels.testing.reference import weighted

B, H, K, V = 2, 2, 8, 12
TIMES = (1, 7, 64, 129, 257)
# Biases of the input gate: 7B's initialisation, the paper's, and one so large that the stabiliser m
# is needed.
BIASES = (-10.0, 0.0, 3.0)
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}

# Compiling is most of the time here. The float64 tests check formulas, which this leaves as they
# are; the float32 ones take the compiler as users have it.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

MLSTM_BACKENDS = ("recurrent", "parallel", "chunkwise")


def mlstm_inputs(time, bias=0.0, seed=0, key_dim=K, value_dim=V, batch=B, heads=H):
    """Random arrays in float64 by name; `bias` is added to the input gates."""
    r = np.random.default_rng(seed)
    return {
        "q": r.normal(size=(batch, time, heads, key_dim)),
        "k": r.normal(size=(batch, time, heads, key_dim)),
        "v": r.normal(size=(batch, time, heads, value_dim)),
        "i": r.normal(size=(batch, time, heads)) + bias,
        "f": r.normal(size=(batch, time, heads)) + 2,
        "C0": r.normal(size=(batch, heads, key_dim, value_dim)),
        "n0": r.normal(size=(batch, heads, key_dim)),
        "m0": r.normal(size=(batch, heads)),
        "segment_ids": np.zeros((batch, time), np.int32),
    }


def slstm_inputs(time, bias=0.0, seed=0, value_dim=V, batch=B, heads=H):
    """Random arrays in float64 by name; `bias` is added to the input gates."""
    r = np.random.default_rng(seed)
    gate_bias = r.normal(size=(4, heads, value_dim)) + np.array([bias, 2, 0, 0])[:, None, None]
    return {
        "x": r.normal(size=(batch, time, 4, heads, value_dim)),
        "R": r.normal(size=(4, heads, value_dim, value_dim)) / value_dim**0.5,
        "bias": gate_bias,
        "c0": r.normal(size=(batch, heads, value_dim)),
        "n0": r.uniform(0.5, 2, size=(batch, heads, value_dim)),
        "h0": r.normal(size=(batch, heads, value_dim)),
        "m0": r.normal(size=(batch, heads, value_dim)),
        "segment_ids": np.zeros((batch, time), np.int32),
    }


def random_documents(time, seed=0, batch=B):
    """Documents of one to a dozen tokens, padding before, between and inside them, ids that come
    back, an id to go on with.
    """
    r = np.random.default_rng(seed)
    ids = np.stack(
        [
            np.repeat(r.integers(0, 4, size=time), r.integers(1, 13, size=time))[:time]
            for _ in range(batch)
        ]
    )
    ids = np.where(r.random(ids.shape) < 0.2, -1 - r.integers(0, 2, size=ids.shape), ids)
    return {
        "segment_ids": ids.astype(np.int32),
        "previous_segment": r.integers(-1, 4, size=batch).astype(np.int32),
    }


def random_weights(values, last_state, seed=1):
    """Weights for `weighted`: states are divided by their size, or left out of the loss."""
    r = np.random.default_rng(seed)
    h, *states = values
    scaled = [
        r.normal(size=x.shape) / np.abs(x).max() if last_state else np.zeros(x.shape)
        for x in states
    ]
    return [r.normal(size=h.shape), *scaled]


def in_dtype(inputs, dtype):
    """Floats in the dtype of the test, integers as they are."""
    return {
        name: jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)
        for name, x in inputs.items()
    }


def _segment_arguments(inputs, documents):
    return {
        name: inputs[name]
        for name in ("segment_ids", "previous_segment")
        if documents and name in inputs
    }


def run_mlstm(inputs, documents=False, **options):
    """(h, state) of a call on the dictionary of inputs."""
    state = MLSTMState(inputs["C0"], inputs["n0"], inputs["m0"]) if "C0" in inputs else None
    arrays = (inputs[name] for name in ("q", "k", "v", "i", "f"))
    return mlstm(*arrays, state, **_segment_arguments(inputs, documents), **options)


def run_slstm(inputs, documents=False, **options):
    """`slstm` of such inputs; with `documents` also with their segments."""
    state = (
        SLSTMState(*(inputs[name] for name in ("c0", "n0", "h0", "m0"))) if "c0" in inputs else None
    )
    return slstm(
        inputs["x"],
        inputs["R"],
        inputs["bias"],
        state,
        **_segment_arguments(inputs, documents),
        **options,
    )


def true_values(cell, result):
    """(h, true states): what may be compared between backends."""
    h, state = result
    if cell == "mlstm":
        return h, state.C * jnp.exp(state.m)[..., None, None], state.n * jnp.exp(state.m)[..., None]
    return h, state.c * jnp.exp(state.m), state.n * jnp.exp(state.m), state.h


@functools.cache
def _compiled(cell, documents, dtype, options):
    run = {"mlstm": run_mlstm, "slstm": run_slstm}[cell]

    def loss(floats, integers, weights):
        values = true_values(cell, run({**floats, **integers}, documents, **dict(options)))
        return weighted(values, weights), values

    return jax.jit(
        jax.grad(loss, has_aux=True), compiler_options=QUICK_COMPILE if dtype == "float64" else None
    )


def evaluate(cell, inputs, weights, dtype, documents=False, **options):
    """(h, true states) and the gradients of `weighted` for every float input, from float inputs
    cast to dtype.
    """
    with jax.enable_x64(dtype == "float64"):
        cast = in_dtype(inputs, dtype)
        floats = {name: x for name, x in cast.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        integers = {name: x for name, x in cast.items() if name not in floats}
        weights = [jnp.asarray(w, dtype) for w in weights]
        gradients, values = _compiled(cell, documents, dtype, tuple(sorted(options.items())))(
            floats, integers, weights
        )
        return [np.asarray(x, np.float64) for x in values], {
            n: np.asarray(x, np.float64) for n, x in gradients.items()
        }


def assert_same(got, expected, tolerance):
    """Every array of `got` equals its counterpart to tolerance times the counterpart's largest
    entry.
    """
    pairs = (
        zip(got, expected, strict=True)
        if isinstance(got, list | tuple)
        else [(got[n], expected[n]) for n in got]
    )
    names = range(len(got)) if isinstance(got, list | tuple) else got
    for name, (x, y) in zip(names, pairs, strict=True):
        assert np.isfinite(x).all(), f"{name} has NaN or infinity"
        error, size = np.abs(x - y).max(), np.abs(y).max()
        assert error <= tolerance * size, f"{name}: error {error:.2e} of {size:.2e}"
