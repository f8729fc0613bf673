"""The checks of the Pallas backends: a call of one of specs.py's cases against the float64
reference.

    pallas_backend.check("pallas_tpu", spec)  # interpret=True
    simulator = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    pallas_backend.check("pallas_tpu", spec, mode=simulator)

Forward, the gradients of all inputs and of the initial state, the last state and the gradients that
flow through it, each array relative to its largest entry, with the tolerance of specs.TOLERANCE.
States are compared as C·exp(m), divided on both sides by the same factor per batch and head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.interpret import interpreted
from pallas_kernels.testing import cases, reference, specs
from pallas_kernels.testing.specs import Spec


def expected(spec: Spec, seed: int = 0, eps: float = 0.0) -> tuple[dict, list, list, list, dict]:
    """(inputs, log of the states' common factor `[B H]`, weights of the loss, values, gradients),
    all float64, of the reference.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # TPUs have no float64
        return _expected(spec, seed, eps)


@functools.lru_cache(maxsize=4)
def _expected(spec: Spec, seed: int, eps: float) -> tuple[dict, list, list, list, dict]:
    inputs = specs.inputs_of(spec, seed)
    cell = "mlstm" if spec.K else "slstm"
    with_state = inputs if spec.state else inputs | _empty_state(spec)
    options = {"input_gate": spec.input_gate, "eps": eps} if spec.K else {}
    h, *states = (reference.mlstm_values if spec.K else reference.slstm_values)(
        with_state, **options
    )
    factor = [_log_size(x) for x in states]
    if spec.K:  # C and n share one
        factor = [np.maximum(*factor)] * 2
    r = np.random.default_rng(seed + 1)
    weights = [specs.rounded(r.normal(size=h.shape), spec.dtype)]
    weights += [r.normal(size=x.shape) if spec.state else np.zeros(x.shape) for x in states]
    if spec.input_gate == "sigmoid":
        weights[2] = np.zeros_like(weights[2])  # n is no output there
    scales = [
        np.exp(-f).reshape(*f.shape, *[1] * (x.ndim - 2))
        for f, x in zip(factor, states, strict=True)
    ]
    scaled = [weights[0], *(w * s for w, s in zip(weights[1:], scales, strict=True))]
    gradients = reference.gradients(cell, with_state, scaled, **options)
    values = [h, *(x * s for x, s in zip(states, scales, strict=True))]
    return (
        inputs,
        factor,
        weights,
        values,
        {name: gradients[name] for name in gradients if name in inputs},
    )


def evaluate(
    backend: Any, spec: Spec, *, mode: Any = True, seed: int = 0, eps: float = 0.0, **options: Any
) -> tuple[list, dict]:
    """What `expected` gives for values and gradients, of a backend; mode is for `interpreted`
    (False: compiled for the device).
    """
    inputs, factor, weights, *_ = expected(spec, seed, eps)
    types = specs.types_of(spec)
    arrays = {name: jnp.asarray(x, types[name]) for name, x in inputs.items()}
    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    weights = [jnp.asarray(w, jnp.float32) for w in weights]
    factor = [jnp.asarray(f, jnp.float32) for f in factor]
    documents = spec.documents != "one"
    if spec.K:
        options = {"input_gate": spec.input_gate, "eps": eps} | options
    run = cases.run_mlstm if spec.K else cases.run_slstm

    def loss(floats):
        h, state = run(arrays | floats, documents, backend=backend, **options)
        assert h.dtype == jnp.dtype(spec.dtype), "the outputs have the inputs' type"
        assert all(part.dtype == jnp.float32 for part in state), "states are float32"
        values = [h.astype(jnp.float32), *_scaled_states(state, factor)]
        return reference.weighted(values, weights), values

    # Interpreted, most of the time is XLA's, for a program that no user compiles.
    compiler_options = None if mode is False else cases.QUICK_COMPILE
    with interpreted(mode):
        gradients, values = jax.jit(
            jax.grad(loss, has_aux=True), compiler_options=compiler_options
        )(floats)
    return [np.asarray(x, np.float64) for x in values], {
        name: np.asarray(x, np.float64) for name, x in gradients.items()
    }


def check(backend: Any, spec: Spec, **options: Any) -> dict[str, float]:
    """Asserts that every value and gradient is the reference's; returns the errors, relative to
    each array's largest entry.

    backend is a name or a tuple of names; options are `evaluate`'s (mode, seed, eps) and those of
    the op (chunk_size, ...).
    """
    exact = {name: options[name] for name in ("seed", "eps") if name in options}
    *_, values, gradients = expected(spec, **exact)
    got_values, got_gradients = evaluate(backend, spec, **options)
    names = ("h", "C", "n") if spec.K else ("h", "c", "n", "last h")
    got = dict(zip(names, got_values, strict=True)) | {
        f"d{name}": x for name, x in got_gradients.items()
    }
    want = dict(zip(names, values, strict=True)) | {f"d{name}": x for name, x in gradients.items()}
    if spec.input_gate == "sigmoid" and spec.K:
        for name in ("n", "dn0", "dm0"):  # no normaliser, no stabiliser: exactly 0
            if name in got:
                np.testing.assert_array_equal(got.pop(name), 0, err_msg=f"{spec.name}: {name}")
    errors = {}
    for name, x in got.items():
        assert np.isfinite(x).all(), f"{spec.name}: {name} has NaN or infinity"
        size = np.abs(want[name]).max()
        # With gates of 80 df is a small difference of two sums as large as di, in any form: its
        # error is compared with those.
        if name == "df" and spec.gates == "extreme":
            size = max(size, np.abs(want["di"]).max())
        size = max(size, np.finfo(np.float32).tiny)
        errors[name] = float(np.abs(x - want[name]).max() / size)
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= spec.tolerance}
    assert not wrong, f"{backend}, {spec.name}: more than {spec.tolerance:g} off: {wrong}"
    return errors


def _scaled_states(state: Any, factor: list) -> list:
    """The true states over their common factors: exp(m - factor) does not overflow where exp(m)
    would.
    """
    if hasattr(state, "C"):
        scale = jnp.exp(state.m - factor[0])
        return [state.C * scale[..., None, None], state.n * scale[..., None]]
    c, n, h, m = state
    return [
        c * jnp.exp(m - factor[0][..., None]),
        n * jnp.exp(m - factor[1][..., None]),
        h * jnp.exp(-factor[2])[..., None],
    ]


def _log_size(x: np.ndarray) -> np.ndarray:
    """Logarithm of the largest entry per batch and head; 0 where all is 0."""
    size = np.abs(x).max(axis=tuple(range(2, x.ndim)))
    return np.log(np.where(size > 0, size, 1))


def _empty_state(spec: Spec) -> dict[str, np.ndarray]:
    shape = (spec.B, spec.H)
    if spec.K:
        return {
            "C0": np.zeros((*shape, spec.K, spec.V)),
            "n0": np.zeros((*shape, spec.K)),
            "m0": np.zeros(shape),
        }
    return {name: np.zeros((*shape, spec.V)) for name in ("c0", "n0", "h0", "m0")}


def check_float32_gates(backend: str, *, mode: Any = True) -> None:
    """The sLSTM as a bfloat16 model calls it: x is float32, R is not. Input gates are about 100,
    where bfloat16 would round them to halves.
    """
    inputs = cases.slstm_inputs(5, bias=0.0, value_dim=32)
    inputs["x"][:, :, 0] += 100
    inputs["m0"] += 100
    inputs = {
        name: specs.rounded(x, "bfloat16" if name == "R" else "float32")
        for name, x in inputs.items()
    }
    weights = [np.ones((2, 5, 2, 32)), *(np.zeros((2, 2, 32)) for _ in range(3))]
    (h, *_), gradients = cases.evaluate("slstm", inputs, weights, "float64")

    def loss(floats):
        h, _ = cases.run_slstm(floats, backend=backend)
        return jnp.sum(h), h

    floats = {
        name: jnp.asarray(x, "bfloat16" if name == "R" else "float32")
        for name, x in inputs.items()
        if name != "segment_ids"
    }
    with interpreted(mode):
        got, got_h = jax.jit(jax.grad(loss, has_aux=True))(floats)
    assert got_h.dtype == got["x"].dtype == jnp.float32
    got = {name: np.asarray(x, np.float64) for name, x in (got | {"h": got_h}).items()}
    cases.assert_same(got, gradients | {"h": h}, specs.TOLERANCE["bfloat16"])
