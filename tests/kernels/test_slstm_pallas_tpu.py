"""The sLSTM's TPU kernel, interpreted: values, gradients and both states against the paper's
equations in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.slstm import pallas_tpu
from pallas_kernels.slstm.pallas_tpu import VMEM_LIMIT, default_blocks, lanes, vmem_bytes
from pallas_kernels.testing import cases, pallas_backend, specs
from pallas_kernels.testing.specs import Spec

# Blocks are 32 tokens at up to 8 rows: T around one, two and four of them, and one that they do not
# divide.
TIMES = (1, 63, 64, 65, 129, 1000)


@pytest.mark.parametrize(
    "spec", [spec for spec in specs.SLSTM if spec.documents != "one"], ids=lambda spec: spec.name
)
def test_values_and_gradients(spec):
    pallas_backend.check("pallas_tpu", spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [spec for spec in specs.SLSTM if spec.gates != 0], ids=lambda spec: spec.name
)
def test_values_and_gradients_of_far_gates(spec):
    pallas_backend.check("pallas_tpu", spec)


@pytest.mark.parametrize(
    "time",
    [time if time in (1, 65) else pytest.param(time, marks=pytest.mark.slow) for time in TIMES],
)
def test_any_length(time):
    pallas_backend.check("pallas_tpu", Spec(f"T{time}", time, K=0, V=16, dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "documents"), (("bfloat16", "borders"), ("float32", "random")))
def test_documents_at_the_borders_of_blocks(dtype, documents):
    pallas_backend.check(
        "pallas_tpu",
        Spec("documents", 129, K=0, V=16, B=3, dtype=dtype, documents=documents, chunk=32),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "dim", "batch"),
    ((4, 64, 9), (3, 40, 1), (5, 24, 2), (1, 128, 17), (2, 192, 2)),
    ids=(
        "two heads in 128 lanes",
        "three, and free lanes",
        "five in 120 lanes",
        "one in 128 lanes, 24 rows",
        "one in 256 lanes",
    ),
)
def test_heads_packed_into_lanes_and_any_batch(heads, dim, batch):
    pallas_backend.check(
        "pallas_tpu",
        Spec("shape", 9, K=0, V=dim, B=batch, H=heads, dtype="float32", documents="random"),
    )


@pytest.mark.slow
def test_several_blocks_of_batch_rows():
    """More than 128 rows: their gradients of R and of the bias are summed."""
    assert default_blocks(150, 5, 128, 4) == (5, 80)
    pallas_backend.check(
        "pallas_tpu", Spec("batch", 5, K=0, V=8, B=150, H=1, dtype="float32", documents="random")
    )


@pytest.mark.slow
def test_in_the_simulator(monkeypatch, capfd):
    """VMEM that nobody wrote is NaN, races are found: several blocks of tokens, documents, two
    groups of heads.
    """
    monkeypatch.setattr(pallas_tpu, "default_blocks", lambda *_: (7, 8))
    mode = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    pallas_backend.check(
        "pallas_tpu",
        Spec("simulated", 13, K=0, V=72, dtype="float32", documents="borders", chunk=7),
        mode=mode,
    )
    assert "RACE" not in capfd.readouterr().out  # jax 0.10 prints them, later ones raise


@pytest.mark.slow
@pytest.mark.parametrize("gate", (-95.0, -400.0))
def test_an_empty_state_takes_any_input_gate(gate):
    inputs = cases.in_dtype(cases.slstm_inputs(3), "float32")
    x, R, bias = inputs["x"].at[:, :, 0].set(gate), inputs["R"], inputs["bias"].at[0].set(0)

    def run(backend):
        def loss(x, R, bias):
            h, state = slstm(x, R, bias, backend=backend)
            return jnp.sum(h**2), (h, state)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, R, bias)

    with interpreted():
        got = run("pallas_tpu")
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(run("recurrent")), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


def test_padding_may_hold_anything():
    """NaN at padding tokens: not one bit of the rest changes, and their gradients are 0."""
    inputs = cases.in_dtype(cases.slstm_inputs(24) | cases.random_documents(24), "float32")
    padding = np.asarray(inputs["segment_ids"] < 0)

    @jax.jit
    def evaluate(x):
        def loss(x):
            h, state = cases.run_slstm(inputs | {"x": x}, True, backend="pallas_tpu")
            return jnp.sum(jnp.sin(h)) + jnp.sum(state.c), (h, state)

        return jax.grad(loss, has_aux=True)(x)

    with interpreted():
        zeros, garbage = (
            evaluate(jnp.where(padding[..., None, None, None], value, inputs["x"]))
            for value in (0.0, np.nan)
        )
    jax.tree.map(np.testing.assert_array_equal, garbage, zeros)
    np.testing.assert_array_equal(np.asarray(garbage[0])[padding], 0)
    np.testing.assert_array_equal(np.asarray(garbage[1][0])[padding], 0)


@pytest.mark.slow
def test_recurrent_gradient_clip():
    """The same as the recurrent form's, where it bites and where it does not."""
    inputs = cases.slstm_inputs(20, seed=3)
    weights = [np.ones((2, 20, 2, 12)), *(np.ones((2, 2, 12)) for _ in range(3))]
    for bound in (1e3, 0.05):
        _, expected = cases.evaluate(
            "slstm", inputs, weights, "float64", recurrent_gradient_clip=bound
        )
        with interpreted():
            _, got = cases.evaluate(
                "slstm",
                inputs,
                weights,
                "float32",
                recurrent_gradient_clip=bound,
                backend="pallas_tpu",
            )
        cases.assert_same(got, expected, specs.TOLERANCE["float32"])


def test_what_it_does_not_serve():
    x, R, bias = (jnp.zeros(shape) for shape in ((1, 2, 4, 1, 8), (4, 1, 8, 8), (4, 1, 8)))
    with pytest.raises(NotImplementedError, match="needs a TPU"):
        slstm(x, R, bias, backend="pallas_tpu")
    with interpreted():
        with pytest.raises(NotImplementedError, match="float16"):
            slstm(x.astype(jnp.float16), R, bias, backend="pallas_tpu")
        wide = (
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((1, 2, 4, 1, 2048), (4, 1, 2048, 2048), (4, 1, 2048))
        )
        with pytest.raises(NotImplementedError, match="VMEM does not hold R"):
            jax.eval_shape(lambda *arrays: slstm(*arrays, backend="pallas_tpu"), *wide)


def test_blocks_fit_into_vmem_and_waste_little():
    assert lanes(heads=12, dim=64) == (128, 2)
    assert lanes(heads=4, dim=16) == (128, 4)
    assert lanes(heads=4, dim=192) == (256, 1)
    for dim in (192, 256, 384, 512):
        for batch in (1, 16, 100, 129, 512):
            for itemsize in (2, 4):
                width = lanes(4, dim)[0]
                tokens, rows = default_blocks(batch, 2048, width, itemsize)
                assert vmem_bytes(tokens, rows, width, itemsize) <= VMEM_LIMIT
                assert rows % 8 == 0 and -(-batch // rows) * rows < batch + 8 * -(-batch // 128)
                assert tokens * rows >= min(128, 2048)


def test_gates_in_float32_stay_so():
    pallas_backend.check_float32_gates("pallas_tpu")
