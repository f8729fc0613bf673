"""The cells on a mesh of 8 devices, spread over batch, heads and time, against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import MLSTMState, SLSTMState, mlstm, sharded, slstm
from pallas_kernels.testing import cases
from tests.kernels.test_sequence_parallel import mesh_of

TIME = 16
AXES = {"batch_axis": ("data", "fsdp"), "head_axis": "tensor", "sequence_axis": "sequence"}
MESHES = [(2, 2, 2, 1), (1, 2, 2, 2)]


def mesh_named(shape):
    return mesh_of(**dict(zip(("data", "fsdp", "tensor", "sequence"), shape, strict=True)))


def arguments(cell, batch=8, heads=2, dtype="float32"):
    inputs = {"mlstm": cases.mlstm_inputs, "slstm": cases.slstm_inputs}[cell](
        TIME, batch=batch, heads=heads
    )
    inputs = cases.in_dtype(inputs | cases.random_documents(TIME, batch=batch), dtype)
    segments = {name: inputs[name] for name in ("segment_ids", "previous_segment")}
    if cell == "mlstm":
        return [
            *(inputs[n] for n in "qkvif"),
            MLSTMState(*(inputs[n] for n in ("C0", "n0", "m0"))),
        ], segments
    return [
        *(inputs[n] for n in ("x", "R", "bias")),
        SLSTMState(*(inputs[n] for n in ("c0", "n0", "h0", "m0"))),
    ], segments


def values_and_gradients(cell, arrays, **options):
    def loss(*arrays):
        h, state = cell(*arrays, **options)
        return jnp.sum(jnp.sin(h)) + sum(jnp.sum(jnp.sin(x)) for x in state[:-1]), (h, state)

    gradients, (h, state) = jax.jit(jax.grad(loss, argnums=range(len(arrays)), has_aux=True))(
        *arrays
    )
    return jax.tree.leaves((gradients, h, state))


def assert_same(got, expected, tolerance=1e-5):
    cases.assert_same([np.asarray(x) for x in got], [np.asarray(x) for x in expected], tolerance)


def test_the_mlstm_equals_the_plain_function():
    arrays, segments = arguments("mlstm")
    options = segments | {"backend": "chunkwise", "chunk_size": 4}
    expected = values_and_gradients(mlstm, arrays, **options)
    for shape in MESHES:
        spread = options | AXES | {"mesh": mesh_named(shape)}
        assert_same(values_and_gradients(sharded.mlstm, arrays, **spread), expected)


def test_the_slstm_equals_the_plain_function():
    """The recurrent kernel's gradient is a sum over all devices that had rows of the batch."""
    arrays, segments = arguments("slstm")
    assert_same(
        values_and_gradients(
            sharded.slstm, arrays, mesh=mesh_named((2, 2, 2, 1)), **AXES, **segments
        ),
        values_and_gradients(slstm, arrays, **segments),
    )


def test_the_mesh_in_context_is_taken():
    arrays, segments = arguments("mlstm")
    mesh = mesh_named((2, 1, 2, 2))
    with jax.set_mesh(mesh):
        h, state = jax.jit(lambda *arrays: sharded.mlstm(*arrays, **AXES, **segments))(*arrays)
    assert h.sharding.is_equivalent_to(
        NamedSharding(mesh, P(("data", "fsdp"), "sequence", "tensor")), h.ndim
    )
    assert state.C.sharding.is_equivalent_to(
        NamedSharding(mesh, P(("data", "fsdp"), "tensor")), state.C.ndim
    )


def test_one_row_and_one_token_run_whole_on_every_device():
    """A decode step with a single row, on a mesh made for training."""
    arrays, _ = arguments("mlstm", batch=1)
    arrays = [x[:, :1] for x in arrays[:5]] + arrays[5:]
    got = values_and_gradients(sharded.mlstm, arrays, mesh=mesh_named((2, 1, 1, 4)), **AXES)
    assert_same(got, values_and_gradients(mlstm, arrays))


def test_without_a_mesh_it_is_the_plain_function():
    arrays, segments = arguments("mlstm")
    assert_same(
        values_and_gradients(sharded.mlstm, arrays, **AXES, **segments),
        values_and_gradients(mlstm, arrays, **segments),
        0,
    )
    jaxpr = jax.make_jaxpr(
        lambda *arrays: sharded.mlstm(*arrays, mesh=mesh_of(data=1), batch_axis="data")
    )(*arrays)
    assert "shard_map" not in str(jaxpr)


def test_the_slstm_says_why_its_time_stays_whole():
    arrays, _ = arguments("slstm")
    with pytest.raises(NotImplementedError, match="enters the gates of the next"):
        sharded.slstm(*arrays, mesh=mesh_named((4, 1, 1, 2)), **AXES)


def test_an_axis_that_the_mesh_does_not_have():
    arrays, _ = arguments("mlstm")
    with pytest.raises(ValueError, match="axes data, not model"):
        sharded.mlstm(*arrays, mesh=mesh_of(data=8), head_axis="model")
