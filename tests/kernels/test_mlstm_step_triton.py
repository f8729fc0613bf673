"""One token of the mLSTM as one Triton kernel, interpreted: values and gradients are those of the
float64 reference, padding and borders of documents are exact, and GPUs get it.

Steps with gates from -1e4 to 1e4 and at infinity are in test_extreme_gates.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import MLSTMState, mlstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.testing import cases, pallas_backend, specs
from tests.kernels.test_gpu_lowering import lowered_for, triton_kernels

B, H, K, V = 2, 2, 32, 48


def one_token(dtype="float32", seed=0):
    """q, k, v, i, f, and a state."""
    r = np.random.default_rng(seed)
    q, k, v = (r.normal(size=(B, 1, H, size)).astype(dtype) for size in (K, K, V))
    i, f = (r.normal(size=(B, 1, H)).astype("float32") for _ in range(2))
    shapes = ((B, H, K, V), (B, H, K), (B, H))
    return (q, k, v, i, f), MLSTMState(*(r.normal(size=x).astype("float32") for x in shapes))


def step(*arrays, **ids):
    with interpreted(True):
        return jax.jit(functools.partial(mlstm, backend="pallas_triton"))(*arrays, **ids)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=spec.name, marks=pytest.mark.slow if number in (2, 4, 5) else ())
        for number, spec in enumerate(specs.ONE_TOKEN)
    ],
)
def test_values_and_gradients(spec):
    pallas_backend.check("pallas_triton", spec)


def test_padding_changes_no_bit():
    token, state = one_token()
    token[0][1], token[3][1] = np.nan, np.nan  # never read there
    h, after = step(*token, state, segment_ids=jnp.array([[0], [-1]]))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), after, state)
    np.testing.assert_array_equal(h[1], 0)
    assert np.any(after.C[0] != state.C[0])


def test_a_border_forgets_even_what_is_no_number():
    token, state = one_token()
    state.C[1], state.n[1] = np.nan, np.inf
    ids = {"segment_ids": jnp.array([[0], [5]]), "previous_segment": jnp.array([0, 4])}
    h, after = step(*token, state, **ids)
    fresh, alone = step(*token)
    np.testing.assert_array_equal(h[1], fresh[1])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), after, alone)


@pytest.mark.parametrize("input_gate", ("exponential", "sigmoid"))
def test_256_steps_are_a_sequence(input_gate):
    """Token by token as all at once; roundings of m do not add up."""
    inputs = cases.in_dtype(cases.mlstm_inputs(256, key_dim=K, value_dim=V), "float32")
    tokens = [jnp.asarray(inputs[name]) for name in ("q", "k", "v", "i", "f")]
    whole = functools.partial(mlstm, input_gate=input_gate, backend="recurrent")
    expected, last = jax.jit(whole)(*tokens)

    def one(state, token):
        h, state = mlstm(
            *(x[:, None] for x in token), state, input_gate=input_gate, backend="pallas_triton"
        )
        return state, h[:, 0]

    heads = tokens[0].shape[2]
    empty = MLSTMState.empty(len(tokens[0]), heads, K, V, jnp.float32)
    with interpreted(True):
        state, h = jax.jit(jax.lax.scan, static_argnums=0)(
            one, empty, tuple(jnp.moveaxis(x, 1, 0) for x in tokens)
        )
    cases.assert_same([np.moveaxis(h, 0, 1)], [np.asarray(expected)], 2e-5)
    np.testing.assert_allclose(state.m, last.m, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.C, last.C, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_derivative_is_that_of_the_definition():
    """Also forward mode, and with 64-bit types enabled."""
    token, state = one_token()

    @functools.partial(jax.jit, static_argnums=0)
    def slope(backend, *token):
        def loss(*token):
            return jnp.sum(jnp.sin(mlstm(*token, state, backend=backend)[0]))

        with interpreted(True):
            return jax.jvp(loss, token, token)

    for wide in (False, True):
        with jax.enable_x64(wide):
            found, expected = (slope(name, *token) for name in ("pallas_triton", "recurrent"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gpu", ("A100", "H100"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_gpus_take_one_kernel_that_writes_the_state_in_its_place(gpu, dtype):
    shapes = [((3, 1, 8, size), dtype) for size in (256, 256, 512)] + [((3, 1, 8), "float32")] * 2
    state = [((3, 8, 256, 512), "float32"), ((3, 8, 256), "float32"), ((3, 8), "float32")]
    program = lowered_for(gpu, lambda *x: mlstm(*x[:5], MLSTMState(*x[5:])), shapes + state)
    assert triton_kernels(program) == {"mlstm_one_token": 1}
    (call,) = [line for line in program.splitlines() if "mlstm_one_token" in line]
    for place in range(3):
        assert f"output_tuple_indices = [{place}], operand_index = {place + 1}" in call


def test_what_it_does_not_serve():
    (q, k, v, i, f), state = one_token()
    with jax.enable_x64(True), interpreted(True):
        with pytest.raises(NotImplementedError, match="float64"):
            mlstm(q, k, v, i.astype("float64"), f, state, backend="pallas_triton")
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        mlstm(q, k, v, i, f, state, backend="pallas_triton")
