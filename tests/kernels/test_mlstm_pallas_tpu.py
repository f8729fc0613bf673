"""The mLSTM's TPU kernels, interpreted: values, gradients and both states against the paper's
equations in float64.

test_tpu_compile.py hands the same kernels to the TPU's compiler, test_tpu_traffic.py counts the
bytes that they move.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import mlstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm import pallas_tpu
from pallas_kernels.mlstm.pallas_tpu import default_blocks
from pallas_kernels.testing import pallas_backend, specs
from pallas_kernels.testing.specs import MODELS, Spec

QUICK = [spec for spec in specs.MLSTM if spec.T in (65, 100, 129)]
SLOW = [spec for spec in specs.MLSTM if spec not in QUICK]
SMALL = {"K": 64, "V": 64, "B": 1, "H": 1}


@pytest.mark.parametrize("spec", QUICK, ids=lambda spec: spec.name)
def test_values_and_gradients(spec):
    pallas_backend.check("pallas_tpu", spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SLOW, ids=lambda spec: spec.name)
def test_values_and_gradients_of_more_lengths_and_heads(spec):
    pallas_backend.check("pallas_tpu", spec)


def test_one_token():
    pallas_backend.check("pallas_tpu", Spec("T1", 1, **SMALL, dtype="float32"))


@pytest.mark.parametrize(
    ("dtype", "time", "state"),
    (
        ("float32", 129, True),
        ("float32", 100, False),
        pytest.param("bfloat16", 110, True, marks=pytest.mark.slow),
    ),
    ids=(
        "the last has all chunks",
        "the last is shorter, no state is given",
        "the last is shorter",
    ),
)
def test_several_stretches(monkeypatch, dtype, time, state):
    """Three stretches of three chunks of 16 tokens: the states between them are kept and read
    again; documents begin at all borders ±1.
    """
    monkeypatch.setattr(pallas_tpu, "default_blocks", lambda *_: (16, 3))
    spec = Spec(
        "stretches",
        time,
        K=64,
        V=64,
        B=2,
        H=1,
        dtype=dtype,
        documents="borders",
        chunk=16,
        state=state,
    )
    pallas_backend.check("pallas_tpu", spec)


@pytest.mark.slow
@pytest.mark.parametrize(("K", "V"), ((64, 1024), (1024, 64), (384, 192)), ids=str)
def test_several_tiles_of_values_and_of_keys(K, V):
    """C is taken in parts of up to 512 columns forward, 512 rows back; 384 is one part, 192 is
    filled up to 256.
    """
    pallas_backend.check(
        "pallas_tpu",
        Spec("tiles", 40, K=K, V=V, B=1, H=2, dtype="float32", documents="borders", chunk=16),
        chunk_size=16,
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", specs.MLSTM_SIMULATED, ids=lambda spec: spec.name)
def test_in_the_simulator(monkeypatch, capfd, spec):
    """VMEM that nobody wrote is NaN, reads beyond an array are errors, races are found: two
    stretches, the last one not full.

    The exponential case is given a state, the other none.
    """
    monkeypatch.setattr(pallas_tpu, "default_blocks", lambda *_: (32, 2))
    mode = pltpu.InterpretParams(
        uninitialized_memory="nan", detect_races=True, out_of_bounds_reads="raise"
    )
    pallas_backend.check(
        "pallas_tpu", spec.but(T=79, state=spec.input_gate == "exponential"), mode=mode
    )
    assert "RACE" not in capfd.readouterr().out  # jax 0.10 prints them, later ones raise


def test_what_it_does_not_serve():
    """The reason is in the error, and no work was done."""
    q, gate = jnp.zeros((1, 32, 1, 64), jnp.bfloat16), jnp.zeros((1, 32, 1))
    wide, wider = (
        jnp.zeros((1, 32, 1, 1300), jnp.bfloat16),
        jnp.zeros((1, 32, 1, 2600), jnp.bfloat16),
    )
    calls = {
        "all bfloat16 or all float32": ([q, q.astype(jnp.float32), q, gate, gate], {}),
        "they are float16": ([q.astype(jnp.float16)] * 3 + [gate, gate], {}),
        "multiple of 16 up to 512": ([q, q, q, gate, gate], {"chunk_size": 40}),
        "must fit VMEM.* 1300 x 1300": ([wide, wide, wide, gate, gate], {}),
        "must fit VMEM.* 64 x 2600": ([q, q, wider, gate, gate], {}),
    }
    with interpreted(True):
        for reason, (arguments, options) in calls.items():
            with pytest.raises(NotImplementedError, match=reason):
                mlstm(*arguments, backend="pallas_tpu", **options)
    with pytest.raises(NotImplementedError, match="needs a TPU"):
        mlstm(q, q, q, gate, gate, backend="pallas_tpu")


@pytest.mark.parametrize("model", MODELS)
def test_chunks_are_long_where_heads_are_wide(model):
    """128 tokens at least; a state is kept every 2048 tokens at most, and none for the paper's
    context of 2048 in bfloat16.
    """
    _, K, V = MODELS[model]
    for dtype in ("bfloat16", "float32"):
        for time in (2048, 8192):
            size, spacing = default_blocks(time, K, V, dtype)
            assert size >= (256 if K * V >= 512 * 512 and dtype == "bfloat16" else 128)
            assert spacing * size <= 2048 and spacing * K * V * jnp.dtype(dtype).itemsize <= 2**24
    assert (
        default_blocks(2048, K, V, "bfloat16")[1] * default_blocks(2048, K, V, "bfloat16")[0]
        == 2048
    )
    assert default_blocks(20, K, V, "bfloat16") == (32, 1)


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_types_of_the_products(dtype):
    """What the matrix unit multiplies: bfloat16 with float32 sums, or float32 at the highest
    precision; the same in both passes.
    """
    q, gate = (
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (((1, 256, 1, 128), dtype), ((1, 256, 1), "float32"))
    )

    def loss(q, k, v, i, f):
        return jnp.sum(mlstm(q, k, v, i, f, backend="pallas_tpu")[0].astype(jnp.float32))

    device = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        kernels = pallas_calls(
            jax.make_jaxpr(jax.grad(loss, argnums=range(5)))(q, q, q, gate, gate).jaxpr
        )
    assert sorted(kernels) == ["mlstm_backward", "mlstm_forward"]
    for name, kernel in kernels.items():
        found = [
            equation
            for equation in equations(kernel.params["jaxpr"])
            if equation.primitive.name == "dot_general"
        ]
        assert len(found) == {"mlstm_forward": 4, "mlstm_backward": 10}[name]
        for product in found:
            assert {x.aval.dtype for x in product.invars} == {jnp.dtype(dtype)}
            assert product.outvars[0].aval.dtype == jnp.float32
            if dtype == "float32":
                assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


def equations(jaxpr):
    """All equations of a program, those of its loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            if hasattr(parameter, "eqns"):
                yield from equations(parameter)
            elif hasattr(parameter, "jaxpr"):
                yield from equations(parameter.jaxpr)


def pallas_calls(jaxpr):
    """The Pallas calls of a program by their names."""
    calls = [equation for equation in equations(jaxpr) if equation.primitive.name == "pallas_call"]
    return {call.params["name"]: call for call in calls}
