"""The sLSTM's Hopper kernel against the float64 reference, in Mosaic GPU's simulator, and what it
refuses.

The simulator runs a cluster's blocks as threads, with their shared memories, barriers and TMA. It
multiplies nothing that is in registers, so that all of R is in shared memory there; on the device a
quarter of R is not where V = 512.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.slstm import pallas_gpu_cluster
from pallas_kernels.slstm.pallas_gpu_cluster import SHARED_MEMORY, default_rows, shared_bytes
from pallas_kernels.testing import cases, pallas_backend, specs
from pallas_kernels.testing.specs import Spec

needs_simulator = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the simulator of Mosaic GPU begins with jax 0.11"
)


def simulator():
    """Memory that nobody wrote is NaN, races are found."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(uninitialized_memory="nan", detect_races=True)


def check(spec: Spec, **options) -> None:
    pallas_backend.check("pallas_gpu", spec, mode=simulator(), **options)


@needs_simulator
@pytest.mark.parametrize("spec", specs.SLSTM_SIMULATED, ids=lambda spec: spec.name)
def test_values_and_gradients(spec):
    check(spec)


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize(
    ("time", "heads", "dim", "batch"),
    ((7, 2, 16, 3), (3, 1, 64, 17), (4, 1, 128, 9), (3, 1, 192, 2)),
    ids=("half empty rows", "two tiles of rows", "a cluster of two", "of three"),
)
def test_narrow_and_wide_heads_and_any_batch(time, heads, dim, batch):
    check(Spec("shape", time, K=0, V=dim, B=batch, H=heads, documents="random"))


@needs_simulator
@pytest.mark.slow
def test_sixteen_rows_in_a_block(monkeypatch):
    """What large batches take on the device."""
    monkeypatch.setattr(pallas_gpu_cluster, "default_rows", lambda *_: 16)
    check(Spec("sixteen", 3, K=0, V=128, B=17, H=1, documents="random"))


@needs_simulator
@pytest.mark.slow
def test_float16_and_a_width_that_is_filled_up():
    check(Spec("float16", 5, K=0, V=100, B=1, H=1, dtype="float16"))


@needs_simulator
@pytest.mark.slow
def test_gates_in_float32_stay_so():
    pallas_backend.check_float32_gates("pallas_gpu", mode=simulator())


@needs_simulator
@pytest.mark.slow
def test_gates_that_jump_between_nothing_and_everything():
    check(Spec("extreme", 9, K=0, V=32, H=1, gates="extreme", documents="random"))


@needs_simulator
@pytest.mark.slow
def test_no_initial_state():
    check(Spec("empty", 6, K=0, V=32, H=1, gates=-10.0, state=False))


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize("gate", (-95.0, -400.0))
def test_an_empty_state_takes_any_input_gate(gate):
    inputs = cases.in_dtype(cases.slstm_inputs(3), "bfloat16")
    x, R, bias = inputs["x"].at[:, :, 0].set(gate), inputs["R"], inputs["bias"].at[0].set(0)

    def run(backend):
        def loss(x, R, bias):
            h, state = slstm(x, R, bias, backend=backend)
            return jnp.sum(h.astype(jnp.float32) ** 2), (h, state)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, R, bias)

    with interpreted(simulator()):
        got = run("pallas_gpu")
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(run("recurrent")), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, atol=2e-2 * np.abs(y).max())


@needs_simulator
@pytest.mark.slow
def test_padding_may_hold_anything():
    """NaN at padding tokens: not one bit of the rest changes, and their gradients are 0."""
    inputs = cases.in_dtype(cases.slstm_inputs(12) | cases.random_documents(12), "bfloat16")
    padding = np.asarray(inputs["segment_ids"] < 0)

    @jax.jit
    def evaluate(x):
        def loss(x):
            h, state = cases.run_slstm(inputs | {"x": x}, True, backend="pallas_gpu")
            return jnp.sum(jnp.sin(h.astype(jnp.float32))) + jnp.sum(state.c), (h, state)

        return jax.grad(loss, has_aux=True)(x)

    with interpreted(simulator()):
        zeros, garbage = (
            evaluate(jnp.where(padding[..., None, None, None], value, inputs["x"]))
            for value in (0.0, np.nan)
        )
    jax.tree.map(np.testing.assert_array_equal, garbage, zeros)
    np.testing.assert_array_equal(np.asarray(garbage[0])[padding], 0)
    np.testing.assert_array_equal(np.asarray(garbage[1][0])[padding], 0)


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize("bound", (1e3, 1.0))
def test_recurrent_gradient_clip(bound):
    """The same as the recurrent form's, where it bites (dh has entries of 9 and more) and where it
    does not.
    """
    inputs = {
        name: specs.rounded(x, "bfloat16") for name, x in cases.slstm_inputs(7, seed=3).items()
    }
    weights = [np.ones((2, 7, 2, 12)), *(np.ones((2, 2, 12)) for _ in range(3))]
    _, expected = cases.evaluate("slstm", inputs, weights, "float64", recurrent_gradient_clip=bound)
    with interpreted(simulator()):
        _, got = cases.evaluate(
            "slstm",
            inputs,
            weights,
            "bfloat16",
            recurrent_gradient_clip=bound,
            backend="pallas_gpu",
        )
    cases.assert_same(got, expected, specs.TOLERANCE["bfloat16"])


@needs_simulator
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "bfloat16 or float16"),
        ({"dim": 520}, "at most 512 units"),
        ({"mode": True}, "simulator"),
        ({"mode": False}, "needs a GPU"),
    ],
    ids=str,
)
def test_refuses_with_the_reason(change, reason):
    given = {"dtype": "bfloat16", "dim": 8, "mode": simulator()} | change
    dim = given["dim"]
    x, R, bias = (
        jnp.zeros((1, 2, 4, 1, dim), given["dtype"]),
        jnp.zeros((4, 1, dim, dim)),
        jnp.zeros((4, 1, dim)),
    )
    with interpreted(given["mode"]), pytest.raises(NotImplementedError, match=reason):
        slstm(x, R, bias, backend="pallas_gpu")


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="jax is new enough here")
def test_says_which_jax_it_needs():
    x, R, bias = (
        jnp.zeros((1, 2, 4, 1, 8), jnp.bfloat16),
        jnp.zeros((4, 1, 8, 8)),
        jnp.zeros((4, 1, 8)),
    )
    with pytest.raises(NotImplementedError, match=r"jax >= 0\.11"):
        slstm(x, R, bias, backend="pallas_gpu")


@needs_simulator
@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"])
def test_lowers_for_hopper_only(kind):
    """A training step has one kernel forward and one backward."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    shapes = (
        ((16, 64, 4, 2, 192), jnp.bfloat16),
        ((4, 2, 192, 192), jnp.float32),
        ((4, 2, 192), jnp.float32),
    )
    arrays = [jax.ShapeDtypeStruct(*x) for x in shapes]

    def loss(*inputs):
        return jnp.sum(
            slstm(*inputs, backend="pallas_gpu", recurrent_gradient_clip=10.0)[0].astype(
                jnp.float32
            )
        )

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(jax.value_and_grad(loss, argnums=range(3)))
        if "A100" in kind:
            with pytest.raises(NotImplementedError, match="sm_90"):
                traced.trace(*arrays)
            return
        text = traced.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 2


def test_blocks_fit_into_shared_memory_and_spread_over_the_gpu():
    for width in range(64, 513, 64):
        for batch in (1, 16, 100, 512):
            rows = default_rows(batch, 4, width)
            assert shared_bytes(rows, width, gates=4) <= SHARED_MEMORY
            assert rows == 8 or -(-batch // 8) * 4 * width // 64 > 132
    assert default_rows(512, 4, 320) == 16
    assert shared_bytes(8, 384, gates=4) == 221248  # ptxas and the runtime: 221,208
