"""Calls that are seldom made and right: heads of one and three numbers, a recurrent matrix that is
large, ids of documents at int32's ends, inputs that are given away, types that differ, rows and
tokens that the devices do not divide. Each is compared with float64, or with the ordinary call.

The stabiliser of a given state, from -1e30 to 80, is in test_extreme_gates.py; NaN at padding, cuts
and vmap are in test_documents.py and test_derivatives.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import MLSTMState, mlstm, sharded, slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.testing import cases, reference
from pallas_kernels.testing.cases import MLSTM_BACKENDS, TOLERANCE, assert_same
from tests.kernels.test_sequence_parallel import mesh_of

FORMS = {name: {"backend": name} for name in MLSTM_BACKENDS} | {
    "pallas_tpu": {"backend": "pallas_tpu"},
    "pallas_triton": {"backend": "pallas_triton", "chunk_size": 16},
}
every_form = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "chunkwise" else pytest.mark.slow)
        for name, options in FORMS.items()
    ],
)


def against_float64(cell, inputs, documents=False, **options):
    """Values and all gradients of a call in float32."""
    exact = {"eps": 0.0} if cell == "mlstm" else {}
    values = getattr(reference, f"{cell}_values")(inputs, **exact)
    weights = cases.random_weights(values, last_state=True)
    gradients = reference.gradients(cell, inputs, weights, **exact)
    with interpreted(True):
        got = cases.evaluate(cell, inputs, weights, "float32", documents, **exact, **options)
    assert_same(got[0], values, TOLERANCE["float32"])
    assert_same(got[1], gradients, TOLERANCE["float32"])


@every_form
@pytest.mark.parametrize(
    ("key_dim", "value_dim"), [(1, 3), pytest.param(3, 1, marks=pytest.mark.slow)]
)
def test_heads_of_one_and_three_numbers(options, key_dim, value_dim):
    inputs = cases.mlstm_inputs(19, key_dim=key_dim, value_dim=value_dim)
    inputs["n0"] = np.abs(inputs["n0"])  # n·q of one number alone may cancel to nothing
    inputs["q"], inputs["k"] = np.abs(inputs["q"]), np.abs(inputs["k"])
    against_float64("mlstm", inputs | cases.random_documents(19), True, **options)


@pytest.mark.parametrize("value_dim", (1, pytest.param(3, marks=pytest.mark.slow)))
def test_slstm_heads_of_one_and_three_numbers(value_dim):
    inputs = cases.slstm_inputs(19, value_dim=value_dim) | cases.random_documents(19)
    against_float64("slstm", inputs, True)


def test_a_large_recurrent_matrix_over_4096_tokens():
    """Its norm is 3: what one token's h does to the next could grow without end, and does not."""
    inputs = cases.slstm_inputs(4096, value_dim=4, batch=1)
    norm = np.linalg.norm(inputs["R"], 2, axis=(-2, -1), keepdims=True)
    inputs["R"] = 3 * inputs["R"] / norm
    against_float64("slstm", inputs)


ENDS = {0: 2**31 - 1, 1: 5, 2: 2**31 - 2, 3: 0, -1: -(2**31), -2: -7}


@pytest.mark.parametrize("cell", ("mlstm", "slstm"))
def test_documents_may_have_any_number_that_int32_holds(cell):
    """Only whether two ids differ counts, and whether one is negative."""
    make = {"mlstm": cases.mlstm_inputs, "slstm": cases.slstm_inputs}[cell]
    run = {"mlstm": cases.run_mlstm, "slstm": cases.run_slstm}[cell]
    inputs = make(40) | cases.random_documents(40)
    small = {name: inputs.pop(name) for name in ("segment_ids", "previous_segment")}
    assert set(np.unique(small["segment_ids"])) == set(ENDS)
    huge = {name: np.vectorize(ENDS.get)(ids).astype(np.int32) for name, ids in small.items()}
    inputs = cases.in_dtype(inputs, "float32")
    call = jax.jit(lambda ids: run(inputs | ids, True))
    jax.tree.map(np.testing.assert_array_equal, call(huge), call(small))


@every_form
def test_inputs_that_are_given_away_change_nothing(options):
    """Their memory may be that of the outputs: a form that wrote there too early would be wrong."""
    inputs = cases.in_dtype(cases.mlstm_inputs(32, key_dim=16, value_dim=16), "float32")
    arrays = [inputs[name] for name in ("q", "k", "v", "i", "f", "C0", "n0", "m0")]
    as_results = (2, 5, 6, 7)  # the shapes of h, C, n and m

    def call(*x):
        h, state = mlstm(*x[:5], MLSTMState(*x[5:]), **options)
        return h, *state

    with interpreted(True):
        expected = jax.jit(call)(*arrays)
        given = [jnp.array(x) for x in arrays]
        got = jax.jit(call, donate_argnums=as_results)(*given)
    assert all(given[number].is_deleted() for number in as_results)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@every_form
def test_gates_may_be_of_another_type_than_the_tokens(options):
    """Tokens in bfloat16, one gate in bfloat16 and one in float32: as the same numbers in one
    type.
    """
    inputs = cases.in_dtype(cases.mlstm_inputs(32, key_dim=16, value_dim=16), "float32")
    q, k, v = (inputs[name].astype("bfloat16") for name in "qkv")
    i, f = inputs["i"].astype("bfloat16"), inputs["f"]
    call = jax.jit(lambda *x: mlstm(*x, **options))
    with interpreted(True):
        h, state = call(q, k, v, i, f)
        expected, expected_state = call(q, k, v, i.astype("float32"), f)
    assert h.dtype == jnp.bfloat16 and {x.dtype.name for x in state} == {"float32"}
    np.testing.assert_array_equal(h, expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def on_a_mesh(cell, time, batch, axes, **options):
    """(of a mesh, of one device): outputs, states and the gradients of the inputs."""
    make = {"mlstm": cases.mlstm_inputs, "slstm": cases.slstm_inputs}[cell]
    inputs = cases.in_dtype(make(time, batch=batch), "float32")
    names = ("q", "k", "v", "i", "f") if cell == "mlstm" else ("x", "R", "bias")
    plain, spread = {"mlstm": (mlstm, sharded.mlstm), "slstm": (slstm, sharded.slstm)}[cell]

    def of(run, **options):
        def loss(*x):
            h, state = run(*x, **options)
            return jnp.sum(jnp.sin(h)), (h, state)

        arrays = [inputs[name] for name in names]
        gradients = jax.grad(loss, argnums=range(len(arrays)), has_aux=True)
        return [np.asarray(x) for x in jax.tree.leaves(jax.jit(gradients)(*arrays))]

    return of(spread, mesh=mesh_of(**axes), **options), of(plain)


@pytest.mark.parametrize("cell", ("mlstm", "slstm"))
def test_three_rows_on_two_devices(cell):
    got, expected = on_a_mesh(cell, 12, 3, {"data": 2}, batch_axis="data")
    assert_same(got, expected, 1e-5)


def test_67_tokens_on_eight_devices():
    got, expected = on_a_mesh("mlstm", 67, 1, {"time": 8}, sequence_axis="time")
    assert_same(got, expected, 1e-5)
