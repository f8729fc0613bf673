"""The mLSTM with its time axis on 8 devices: the same values and gradients as on one."""

import functools
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from pallas_kernels import MLSTMState, sharded
from pallas_kernels.interpret import interpreted
from pallas_kernels.testing import cases
from pallas_kernels.testing.reference import weighted

SHARDS, TIME = 8, 48  # 6 tokens a device
DOCUMENTS = {
    "none": None,
    "random": "random",
    # before, at and after an edge
    "borders at the shards' edges": [0] * 12 + [1] * 6 + [2] * 7 + [3] * 11 + [2] * 12,
    # whole shards of it
    "padding": [-1] * 3 + [0] * 2 + [-1] * 15 + [0] * 4 + [-1] * 6 + [5] * 5 + [-1] * 7 + [5] * 6,
    "padding before a border": [-1] * 6
    + [0] * 3
    + [-1] * 3
    + [1] * 6
    + [-1] * 12
    + [1] * 5
    + [-1] * 1
    + [0] * 6
    + [-1] * 6,
}


def mesh_of(**axes):
    """A mesh of the first devices."""
    count = math.prod(axes.values())
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
        devices=jax.devices()[:count],
    )


def inputs_with(documents, seed=0, bias=0.0):
    inputs = cases.mlstm_inputs(TIME, bias=bias, seed=seed)
    if documents == "random":
        return inputs | cases.random_documents(TIME, seed=seed)
    if documents is not None:
        ids = np.asarray(documents, np.int32)
        inputs["segment_ids"] = np.stack([ids, np.roll(ids, 5)])
        inputs["previous_segment"] = np.array([0, 7], np.int32)
    return inputs


@functools.cache
def compiled(run, documents, options, dtype):
    def loss(floats, integers, weights):
        arrays = {**floats, **integers}
        segments = {
            name: arrays[name]
            for name in ("segment_ids", "previous_segment")
            if documents and name in arrays
        }
        state = MLSTMState(*(arrays[name] for name in ("C0", "n0", "m0")))
        result = run(*(arrays[name] for name in "qkvif"), state, **segments, **dict(options))
        values = cases.true_values("mlstm", result)
        return weighted(values, weights), (*values, result[1].m)

    return jax.jit(
        jax.grad(loss, has_aux=True),
        compiler_options=cases.QUICK_COMPILE if dtype == "float64" else None,
    )


def evaluate(inputs, dtype, documents, mesh=None, **options):
    """([h, true C, true n, m], gradients), the time axis on the mesh or, without, on one device."""
    with jax.enable_x64(dtype == "float64"):
        r = np.random.default_rng(1)
        cast = cases.in_dtype(inputs, dtype)
        floats = {name: x for name, x in cast.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        batch, _, heads, key_dim = inputs["q"].shape
        shapes = [
            inputs["v"].shape,
            (batch, heads, key_dim, inputs["v"].shape[-1]),
            (batch, heads, key_dim),
        ]
        weights = [jnp.asarray(r.normal(size=shape), dtype) for shape in shapes]
        if mesh is not None:
            options |= {"mesh": mesh, "sequence_axis": "sequence"}
        run = compiled(
            sharded.mlstm,
            documents,
            tuple(sorted(options.items(), key=lambda item: item[0])),
            dtype,
        )
        gradients, values = run(
            floats, {name: x for name, x in cast.items() if name not in floats}, weights
        )
        return [np.asarray(x, np.float64) for x in values], {
            n: np.asarray(x, np.float64) for n, x in gradients.items()
        }


def assert_equal_on_a_mesh(inputs, documents, **options):
    expected = evaluate(inputs, "float64", documents, **options)
    got = evaluate(inputs, "float64", documents, mesh=mesh_of(sequence=SHARDS), **options)
    for got_part, expected_part in zip(got, expected, strict=True):
        cases.assert_same(got_part, expected_part, 1e-12)


@pytest.mark.parametrize(
    "input_gate", ["exponential", pytest.param("sigmoid", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("documents", DOCUMENTS)
def test_a_sharded_sequence_equals_a_whole_one(documents, input_gate):
    """Values and gradients of all inputs and the initial state, through the last state too, in
    float64.
    """
    inputs = inputs_with(DOCUMENTS[documents])
    assert_equal_on_a_mesh(
        inputs,
        DOCUMENTS[documents] is not None,
        input_gate=input_gate,
        backend="chunkwise",
        chunk_size=4,
        eps=0.0,
    )


@pytest.mark.parametrize("backend", ["recurrent", "parallel"])
@pytest.mark.slow
def test_every_form_takes_its_part(backend):
    assert_equal_on_a_mesh(inputs_with("random", seed=3), True, backend=backend, eps=0.0)


@pytest.mark.parametrize("bias", [-10.0, 3.0])
@pytest.mark.slow
def test_the_stabiliser_is_the_whole_sequences(bias):
    """eps is added to the stabilised denominator: it means the same only if m is the same in every
    shard.
    """
    assert_equal_on_a_mesh(
        inputs_with("random", seed=4, bias=bias), True, backend="chunkwise", chunk_size=4, eps=0.1
    )


@pytest.mark.parametrize("backend", ["pallas_triton", "pallas_tpu"])
@pytest.mark.slow
def test_pallas_backends_take_their_part(backend):
    """Interpreted, in float32, with batch and heads spread too."""
    inputs = inputs_with(DOCUMENTS["padding"])
    expected = evaluate(
        inputs,
        "float64",
        True,
        input_gate="exponential",
        backend="chunkwise",
        chunk_size=4,
        eps=0.0,
    )
    with interpreted(True):
        mesh, axes = (
            mesh_of(data=2, tensor=2, sequence=2),
            {"batch_axis": "data", "head_axis": "tensor"},
        )
        got = evaluate(inputs, "float32", True, mesh=mesh, **axes, backend=backend, eps=0.0)
    for got_part, expected_part in zip(got, expected, strict=True):
        cases.assert_same(got_part, expected_part, 1e-4)


def test_a_strong_forget_gate_leaves_nothing_and_no_nan():
    inputs = inputs_with("random", seed=5)
    inputs["f"][:, ::5] = -80.0
    inputs["i"][:, 3::7] = 80.0
    assert_equal_on_a_mesh(
        inputs, True, input_gate="exponential", backend="chunkwise", chunk_size=4, eps=0.0
    )  # the compiled program of the tests above


def test_states_go_over_in_one_all_gather_and_tokens_never():
    """Every all-gather of the forward pass carries states or ids; none carries tokens."""
    mesh = mesh_of(sequence=SHARDS)
    time, batch, heads, key_dim, value_dim = 1024, 1, 2, 8, 8

    def run(q, k, v, i, f, ids):
        h, state = sharded.mlstm(
            q, k, v, i, f, segment_ids=ids, mesh=mesh, sequence_axis="sequence"
        )
        return jnp.sum(h) + jnp.sum(state.C)

    def on(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.sharding.NamedSharding(mesh, P(None, "sequence"))
        )

    key, value, gate = (on((batch, time, heads, *dim)) for dim in ((key_dim,), (value_dim,), ()))
    lowered = jax.jit(jax.grad(run, argnums=range(5))).lower(
        key, key, value, gate, gate, on((batch, time), jnp.int32)
    )
    names = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    collectives = [
        line
        for line in lowered.compile().as_text().splitlines()
        if any(f" {name}(" in line or f" {name}-start(" in line for name in names)
    ]
    assert collectives, "the shards hand over something"
    for line in collectives:
        assert str(time) not in line.split("metadata")[0], line


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install libtpu",
)
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_the_compiler_of_a_tpu_pod_takes_the_kernels_and_one_gather_of_states(monkeypatch):
    """Eight v5e chips, batch and time spread, gradients of all inputs: Mosaic's kernels are there,
    and C goes over once.
    """
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = jax.sharding.Mesh(
        np.array(devices).reshape(2, 4),
        ("data", "sequence"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    rows, time, heads, dim = 4, 1024, 2, 128

    def on(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=jax.sharding.NamedSharding(mesh, P("data", "sequence"))
        )

    def loss(q, k, v, i, f, ids):
        h, _ = sharded.mlstm(
            q, k, v, i, f, segment_ids=ids, batch_axis="data", sequence_axis="sequence"
        )
        return jnp.sum(h.astype(jnp.float32) ** 2)

    tokens, gates = [on((rows, time, heads, dim))] * 3, [on((rows, time, heads))] * 2
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(jax.grad(loss, argnums=range(5)))
            .lower(*tokens, *gates, on((rows, time), jnp.int32))
            .compile()
        )
    program = compiled.as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 2, "forward and backward"
    gathered = re.findall(r"= (\S+?)\[([\d,]+)\]\S* all-gather(?:-start)?\(", program)
    assert not [
        dims
        for _, dims in gathered
        if str(time // 4) in dims.split(",") or str(time) in dims.split(",")
    ]
    [of_C] = [dims for _, dims in gathered if dims.endswith(f"{dim},{dim}")]
    assert math.prod(map(int, of_C.split(","))) == 4 * (rows // 2) * heads * dim * dim
