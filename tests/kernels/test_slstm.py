"""The sLSTM's values and gradients against the paper's equations in float64, with R ≠ 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import slstm
from pallas_kernels.testing import cases, reference
from pallas_kernels.testing.cases import BIASES, TIMES, TOLERANCE, assert_same


def reference_of(inputs, last_state=True):
    values = reference.slstm_values(inputs)
    weights = cases.random_weights(values, last_state)
    return values, weights, reference.gradients("slstm", inputs, weights)


def check(inputs, dtype, last_state=True, documents=False):
    """Values and all gradients of a call equal the reference's."""
    values, weights, gradients = reference_of(inputs, last_state)
    got_values, got_gradients = cases.evaluate("slstm", inputs, weights, dtype, documents)
    assert_same(got_values, values, TOLERANCE[dtype])
    assert_same(got_gradients, gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("time", TIMES)
def test_values_and_gradients_in_float64(time, bias):
    for last_state in (False, True):
        check(cases.slstm_inputs(time, bias), "float64", last_state)


@pytest.mark.parametrize("bias", BIASES)
def test_values_and_gradients_in_float32(bias):
    check(cases.slstm_inputs(257, bias), "float32")


@pytest.mark.parametrize("seed", range(3))
def test_documents_with_padding(seed):
    check(
        cases.slstm_inputs(100, seed=seed) | cases.random_documents(100, seed),
        "float64",
        documents=True,
    )


def test_gates_of_80():
    """Gates that jump between -80 and +80: right in float64, and no NaN in float32."""
    r = np.random.default_rng(0)
    inputs = cases.slstm_inputs(64) | cases.random_documents(64)
    for gate in (0, 1, 3):
        inputs["x"][:, :, gate] = r.choice([-80.0, 80.0], size=inputs["x"][:, :, gate].shape)
    check(inputs, "float64", documents=True)
    values, weights, _ = reference_of(inputs, last_state=False)
    got_values, got_gradients = cases.evaluate("slstm", inputs, weights, "float32", True)
    assert_same(got_values[:1], values[:1], TOLERANCE["float32"])
    for name, gradient in got_gradients.items():
        assert np.isfinite(gradient).all(), name


def test_an_empty_state_takes_any_input_gate():
    """m_1 = i_1 and n_1 = 1: without that rule exp(i) would be 0 in float32, and h_1 = 0/0."""
    inputs = {name: x.astype(np.float32) for name, x in cases.slstm_inputs(3).items()}
    x, R, bias = (inputs[name] for name in ("x", "R", "bias"))
    bias[0] = 0

    @jax.jit
    def evaluate(x):
        def loss(x, R, bias):
            h, state = slstm(x, R, bias)
            return jnp.sum(h**2), (h, state)

        gradients, (h, _) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, R, bias)
        return gradients, h, slstm(x[:, :1], R, bias)[1]

    o, z = (x + bias)[:, 0, 3], (x + bias)[:, 0, 2]
    for gate in (-95.0, -400.0):
        x[:, :, 0] = gate
        gradients, h, first = evaluate(x)
        np.testing.assert_array_equal(first.n, 1)
        np.testing.assert_allclose(first.m, gate)
        np.testing.assert_allclose(h[:, 0], reference.sigmoid(o) * np.tanh(z), rtol=1e-5)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, h)))


def test_bfloat16():
    """x in bfloat16: outputs in bfloat16, states in float32, within 2e-2 of float64 on the same
    rounded x.
    """
    inputs = cases.slstm_inputs(129)
    rounded = inputs["x"].astype(jnp.bfloat16)
    values = reference.slstm_values(inputs | {"x": np.asarray(rounded, np.float64)})
    call = jax.jit(cases.run_slstm)
    h, state = call(cases.in_dtype(inputs, "float32") | {"x": rounded})
    assert h.dtype == jnp.bfloat16
    assert all(part.dtype == jnp.float32 for part in state)
    got = cases.true_values("slstm", (h, state))
    assert_same([np.asarray(x, np.float64) for x in got], list(values), 2e-2)


def test_recurrent_gradient_clip_bounds_what_flows_through_the_recurrent_kernel():
    """A wide bound changes nothing; a narrow one bounds the gradient of h0, which flows through R
    alone, and no value.
    """
    inputs = cases.slstm_inputs(20)
    values, weights, gradients = reference_of(inputs)
    _, wide = cases.evaluate("slstm", inputs, weights, "float64", recurrent_gradient_clip=1e3)
    assert_same(wide, gradients, TOLERANCE["float64"])
    bound = 0.5 * np.abs(gradients["h0"]).max()
    got_values, narrow = cases.evaluate(
        "slstm", inputs, weights, "float64", recurrent_gradient_clip=bound
    )
    assert np.abs(narrow["h0"]).max() == pytest.approx(bound)
    assert_same(got_values, values, TOLERANCE["float64"])

    # The bound acts on h alone: in a single step all other gradients stay exact.
    inputs = cases.slstm_inputs(1)
    _, weights, gradients = reference_of(inputs)
    _, narrow = cases.evaluate("slstm", inputs, weights, "float64", recurrent_gradient_clip=1e-3)
    assert np.abs(narrow.pop("h0")).max() == pytest.approx(1e-3)
    assert_same(narrow, gradients, TOLERANCE["float64"])


def test_the_program_does_not_grow_with_time():
    def size(time):
        inputs = cases.in_dtype(cases.slstm_inputs(time), "float32")
        return len(
            str(
                jax.make_jaxpr(jax.grad(lambda x: cases.run_slstm(x)[0].sum(), allow_int=True))(
                    inputs
                )
            )
        )

    assert size(400) < size(40) * 1.1


def test_shapes_that_do_not_fit_are_named():
    inputs = cases.in_dtype(cases.slstm_inputs(4), "float32")
    for name, shown in (
        ("R", "recurrent_kernel"),
        ("bias", "bias"),
        ("c0", "initial_state.c"),
        ("m0", "initial_state.m"),
    ):
        with pytest.raises(ValueError, match=f"{shown} has shape"):
            cases.run_slstm(inputs | {name: inputs[name][..., :1]})
    with pytest.raises(ValueError, match=r"must be \[B T 4 H V\]"):
        cases.run_slstm(inputs | {"x": inputs["x"][:, :, :3]})
    with pytest.raises(ValueError, match="recurrent_gradient_clip is 0"):
        cases.run_slstm(inputs, recurrent_gradient_clip=0)
