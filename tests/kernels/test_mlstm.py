"""The mLSTM's values and gradients, in every backend, against the paper's equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import mlstm
from pallas_kernels.mlstm.chunkwise import default_chunk_size
from pallas_kernels.testing import cases, reference
from pallas_kernels.testing.cases import BIASES, MLSTM_BACKENDS, TIMES, TOLERANCE, assert_same


def reference_of(inputs, last_state=True, **options):
    """(values, weights of a loss, gradients)."""
    values = reference.mlstm_values(inputs, **options)
    weights = cases.random_weights(values, last_state)
    if options.get("input_gate") == "sigmoid":
        weights[2] = np.zeros_like(weights[2])  # the normaliser is no output there
    return values, weights, reference.gradients("mlstm", inputs, weights, **options)


def check(inputs, dtype, last_state=True, documents=False, **options):
    """Values and all gradients of a call equal the reference's."""
    exact = {name: option for name, option in options.items() if name in ("input_gate", "eps")}
    values, weights, gradients = reference_of(inputs, last_state, **exact)
    got_values, got_gradients = cases.evaluate(
        "mlstm", inputs, weights, dtype, documents, **options
    )
    assert_same(got_values, values, TOLERANCE[dtype])
    assert_same(got_gradients, gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_values_and_gradients_in_float64(backend, time, bias):
    for last_state in (False, True):
        check(cases.mlstm_inputs(time, bias), "float64", last_state, backend=backend, eps=0.0)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_values_and_gradients_in_float32(backend, bias):
    check(cases.mlstm_inputs(257, bias), "float32", backend=backend, eps=0.0)


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_documents_with_padding(backend):
    """Random layouts of documents and padding, and an id to go on with."""
    for seed in range(3):
        inputs = cases.mlstm_inputs(100, seed=seed) | cases.random_documents(100, seed)
        check(inputs, "float64", documents=True, backend=backend, eps=0.0)


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_sigmoid_input_gate(backend):
    """No normaliser and no stabiliser: given ones have no effect and the returned ones are 0."""
    inputs = cases.mlstm_inputs(100) | cases.random_documents(100)
    values, weights, gradients = reference_of(
        inputs | {"m0": 0 * inputs["m0"]}, input_gate="sigmoid"
    )
    got_values, got_gradients = cases.evaluate(
        "mlstm", inputs, weights, "float64", True, backend=backend, input_gate="sigmoid"
    )
    assert_same(got_values[:2], values[:2], TOLERANCE["float64"])
    np.testing.assert_array_equal(got_values[2], 0)
    np.testing.assert_array_equal(got_gradients.pop("m0"), 0)
    assert_same(got_gradients, gradients, TOLERANCE["float64"])


@pytest.mark.parametrize("chunk_size", (1, 5, 64, 300))
def test_chunk_size_changes_nothing(chunk_size):
    inputs = cases.mlstm_inputs(100) | cases.random_documents(100)
    check(inputs, "float64", documents=True, backend="chunkwise", chunk_size=chunk_size, eps=0.0)


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_eps_is_added_to_the_stabilised_denominator(backend):
    """With a large eps too, so that a misplaced one shows; the gradient holds the stabiliser
    constant, like the oracle's.
    """
    for eps in (1e-6, 0.1):
        inputs = cases.mlstm_inputs(64, bias=3.0) | cases.random_documents(64)
        values = reference.mlstm_values(inputs, eps=eps)
        weights = cases.random_weights(values, last_state=True)
        got_values, got_gradients = cases.evaluate(
            "mlstm", inputs, weights, "float64", True, backend=backend, eps=eps
        )
        assert_same(got_values, values, TOLERANCE["float64"])
        _, oracle = cases.evaluate(
            "mlstm", inputs, weights, "float64", True, backend="recurrent", eps=eps
        )
        assert_same(got_gradients, oracle, TOLERANCE["float64"])


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_gates_of_80(backend):
    """Gates that jump between -80 and +80: right in float64, and no NaN in float32."""
    r = np.random.default_rng(0)
    inputs = cases.mlstm_inputs(64) | cases.random_documents(64)
    inputs["i"], inputs["f"] = (r.choice([-80.0, 80.0], size=inputs["i"].shape) for _ in range(2))
    check(inputs, "float64", documents=True, backend=backend, eps=0.0)
    values, weights, _ = reference_of(inputs)
    got_values, got_gradients = cases.evaluate(
        "mlstm", inputs, weights, "float32", True, backend=backend, eps=0.0
    )
    assert_same(got_values, values, TOLERANCE["float32"])
    for name, gradient in got_gradients.items():
        assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_bfloat16(backend):
    """Inputs rounded to bfloat16, gates in float32: within 2e-2 of float64 on the same rounded
    inputs.
    """
    inputs = cases.mlstm_inputs(129)
    rounded = {
        name: np.asarray(jnp.asarray(inputs[name], jnp.bfloat16), np.float64)
        for name in ("q", "k", "v")
    }
    values, weights, gradients = reference_of(inputs | rounded)

    def loss(q, k, v, i, f):
        state = cases.MLSTMState(
            *(jnp.asarray(inputs[name], jnp.float32) for name in ("C0", "n0", "m0"))
        )
        h, state = mlstm(q, k, v, i, f, state, backend=backend)
        assert h.dtype == jnp.bfloat16
        assert all(part.dtype == jnp.float32 for part in state)
        outputs = cases.true_values("mlstm", (h.astype(jnp.float32), state))
        return reference.weighted(outputs, [jnp.asarray(w, jnp.float32) for w in weights]), outputs

    arguments = [jnp.asarray(inputs[name], jnp.bfloat16) for name in ("q", "k", "v")]
    arguments += [jnp.asarray(inputs[name], jnp.float32) for name in ("i", "f")]
    got_gradients, got = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True))(*arguments)
    assert_same([np.asarray(x, np.float64) for x in got], list(values), 2e-2)
    got_gradients = [np.asarray(x, np.float64) for x in got_gradients]
    assert_same(got_gradients, [gradients[name] for name in ("q", "k", "v", "i", "f")], 2e-2)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    time=st.integers(1, 20),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    key_dim=st.integers(1, 5),
    value_dim=st.integers(1, 5),
    chunk_size=st.integers(1, 9),
)
@pytest.mark.slow
def test_any_shape(time, batch, heads, key_dim, value_dim, chunk_size):
    inputs = cases.mlstm_inputs(
        time, key_dim=key_dim, value_dim=value_dim, batch=batch, heads=heads
    )
    inputs |= cases.random_documents(time, batch=batch)
    values, weights, gradients = reference_of(inputs)
    options = {"backend": "chunkwise", "chunk_size": chunk_size, "eps": 0.0}
    got_values, got = cases.evaluate("mlstm", inputs, weights, "float64", True, **options)
    for x, y in zip(got_values, values, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)
    for name in got:  # an input that has no effect, as after a reset, has a gradient of size 0
        np.testing.assert_allclose(got[name], gradients[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", (1, 7, 64, 100, 129, 257, 2048))
def test_the_default_chunk_size_wastes_little(time):
    """Fewer filling tokens than there are chunks, and longer chunks for larger states."""
    sizes = [default_chunk_size(time, dim, dim) for dim in (64, 128, 512)]
    assert sizes == sorted(sizes)
    assert all(-time % size < -(-time // size) for size in sizes)


def test_the_program_does_not_grow_with_time():
    """The scan over chunks is one body, however long the sequence: compile time is constant."""

    def size(time):
        inputs = cases.in_dtype(cases.mlstm_inputs(time), "float32")
        gradient = jax.grad(
            lambda x: cases.run_mlstm(x, backend="chunkwise")[0].sum(), allow_int=True
        )
        return len(str(jax.make_jaxpr(gradient)(inputs)))

    assert size(64 * 40) < size(64 * 4) * 1.1


def test_shapes_that_do_not_fit_are_named():
    inputs = cases.in_dtype(cases.mlstm_inputs(4), "float32")
    for name in ("k", "i", "f", "C0", "n0", "m0"):
        with pytest.raises(ValueError, match=f"{name.replace('0', '')} has shape"):
            cases.run_mlstm(inputs | {name: inputs[name][..., :1]})
    with pytest.raises(ValueError, match="segment_ids has shape"):
        cases.run_mlstm(inputs | {"segment_ids": inputs["segment_ids"][:, :2]}, documents=True)
    with pytest.raises(ValueError, match="input_gate is 'relu'"):
        cases.run_mlstm(inputs, input_gate="relu")
    with pytest.raises(ValueError, match="chunk_size is 0"):
        cases.run_mlstm(inputs, chunk_size=0)
