"""The backend "pallas_gpu" against the float64 reference, in Mosaic GPU's simulator, and what it
refuses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm import mlstm
from pallas_kernels.mlstm.pallas_gpu import default_chunk_size, has_narrow_heads
from pallas_kernels.testing import pallas_backend
from pallas_kernels.testing.specs import Spec
from pallas_kernels.typing import MLSTMState

needs_simulator = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the simulator of Mosaic GPU begins with jax 0.11"
)


def simulator(**parameters):
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(**parameters)


def check(spec: Spec, **parameters) -> None:
    pallas_backend.check("pallas_gpu", spec, mode=simulator(**parameters), chunk_size=spec.chunk)


# Narrow heads make their pairs where they are used, in chunks of 128 and 256; wide ones, and other
# chunks, write them to memory. 64 columns of wide heads are one tile, and no cluster.
HEADS = pytest.mark.parametrize(
    ("K", "V", "chunk"),
    [(64, 64, 128), (320, 64, 64), (64, 64, 64)],
    ids=["narrow", "wide", "short"],
)


def test_which_heads_are_narrow():
    narrow = [(16, 16), (64, 64), (128, 256), (256, 128), (190, 192)]
    wide = [(256, 192), (130, 256), (64, 320), (384, 384), (256, 512)]
    assert [has_narrow_heads(*widths) for widths in narrow + wide] == [True] * 5 + [False] * 5


@needs_simulator
@pytest.mark.slow
@HEADS
def test_documents_and_padding_at_the_borders_of_chunks(K, V, chunk):
    T = 2 * chunk + 44
    check(Spec("borders", T=T, K=K, V=V, B=2, H=1, chunk=chunk, documents="borders"))


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize("K", [64, 320], ids=["narrow", "wide"])
def test_no_memory_is_read_unwritten_and_nothing_races_where_a_chunk_has_several_tiles(K):
    """193 tokens in a chunk of 256, documents in both: with wide heads two tiles of rows, of which
    the upper right pair is never written; with narrow ones four, in two clusters.
    """
    spec = Spec("tiles", T=193, K=K, V=64, B=1, H=1, chunk=256, documents="random")
    check(spec, uninitialized_memory="nan", detect_races=True)


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize(("used", "chunk"), [("h", 128), ("C", 128), ("hn", 128), ("h", 64)])
def test_no_state_before_and_results_that_nobody_uses(used, chunk):
    """The kernels read no state then, and no gradient of one: as with zeros in their place."""
    draw = np.random.default_rng(0).normal
    arrays = [draw(size=(1, 129, 1, size)) for size in (64, 64, 128)]
    arrays += [draw(size=(1, 129, 1)) for _ in range(2)]
    bfloat16 = [jnp.asarray(x, jnp.bfloat16 if x.ndim == 4 else jnp.float32) for x in arrays]

    def gradients(state, weights):
        def loss(arrays):
            h, after = mlstm(*arrays, state, backend="pallas_gpu", chunk_size=chunk)
            parts = {"h": h.astype(jnp.float32), "C": after.C / 8, "n": after.n}
            return sum(w * jnp.sum(jnp.sin(parts[name])) for name, w in weights.items())

        with interpreted(simulator(uninitialized_memory="nan")):
            return jax.jit(jax.grad(loss))(bfloat16)

    given = {name: 1.0 for name in used}
    zeros = MLSTMState.empty(1, 1, 64, 128)
    for x, y in zip(
        gradients(None, given), gradients(zeros, {"h": 0, "C": 0, "n": 0} | given), strict=True
    ):
        np.testing.assert_array_equal(x.astype(jnp.float32), y.astype(jnp.float32))


@needs_simulator
@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        Spec("one tile of rows", T=65, K=256, V=256, B=1, H=1, documents="borders"),
        Spec("two tiles of rows", T=193, K=64, V=512, B=1, H=1, chunk=256, documents="random"),
        Spec("narrow heads", T=193, K=128, V=256, B=1, H=1, chunk=256, documents="random"),
        Spec("two clusters", T=129, K=64, V=512, B=1, H=2, chunk=128, input_gate="sigmoid"),
    ],
    ids=lambda spec: spec.name,
)
def test_blocks_that_share_an_operand_as_a_cluster(spec):
    """256 columns of wide heads are two tiles of 128. The simulator runs the cluster's barrier, but
    copies a shared block for each of its blocks.
    """
    check(spec, uninitialized_memory="nan", detect_races=True)


@needs_simulator
@pytest.mark.slow
@HEADS
def test_sigmoid_gate_with_two_heads(K, V, chunk):
    given = {"input_gate": "sigmoid", "documents": "random", "chunk": chunk}
    check(Spec("sigmoid", T=chunk + 1, K=K, V=V, B=1, H=2, **given))


@needs_simulator
@pytest.mark.slow
def test_tiles_of_128_and_64_columns_and_widths_that_are_filled_up():
    """K 80 becomes one tile of 128, V 300 five of 64; 30 tokens fill up one chunk of 128; the
    input gate as in 7B's beginning.
    """
    check(Spec("widths", T=30, K=80, V=300, B=1, H=1, gates=-10.0, chunk=128))


@needs_simulator
@pytest.mark.slow
def test_narrow_heads_that_are_filled_up():
    check(Spec("widths", T=30, K=200, V=100, B=1, H=1, gates=-10.0, chunk=128))


@needs_simulator
@pytest.mark.slow
@HEADS
def test_gates_that_jump_between_nothing_and_everything(K, V, chunk):
    given = {"gates": "extreme", "documents": "random", "chunk": chunk}
    check(Spec("extreme", T=chunk + 1, K=K, V=V, B=1, H=1, **given))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "all bfloat16; they are float32"),
        ({"dtype": "float16"}, "all bfloat16; they are float16"),
        ({"time": 1}, "one token"),
        ({"batch": 65536}, "batch times heads"),
        ({"chunk_size": 96}, "chunk_size"),
        ({"mode": True}, "simulator"),
        ({"mode": False}, "needs a GPU"),
    ],
    ids=lambda x: str(x),
)
@needs_simulator
def test_refuses_with_the_reason(change, reason):
    given = {
        "dtype": "bfloat16",
        "batch": 1,
        "time": 4,
        "chunk_size": None,
        "mode": simulator(),
    } | change
    shape = (given["batch"], given["time"], 1)
    x, gate = jnp.zeros((*shape, 64), given["dtype"]), jnp.zeros(shape)
    with interpreted(given["mode"]), pytest.raises(NotImplementedError, match=reason):
        mlstm(x, x, x, gate, gate, backend="pallas_gpu", chunk_size=given["chunk_size"])


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="jax is new enough here")
def test_says_which_jax_it_needs():
    x, gate = jnp.zeros((1, 4, 1, 64), jnp.bfloat16), jnp.zeros((1, 4, 1))
    with pytest.raises(NotImplementedError, match=r"jax >= 0\.11"):
        mlstm(x, x, x, gate, gate, backend="pallas_gpu")


@needs_simulator
def test_refuses_a_gpu_that_is_not_hopper():
    """test_gpu_lowering.py has the GPUs that it takes."""
    device = jax.sharding.AbstractDevice(
        device_kind="NVIDIA A100-SXM4-80GB", num_cores=None, platform="gpu"
    )
    x, gate = jnp.zeros((1, 64, 1, 64), jnp.bfloat16), jnp.zeros((1, 64, 1))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        with pytest.raises(NotImplementedError, match="sm_90"):
            mlstm(x, x, x, gate, gate, backend="pallas_gpu")


@pytest.mark.parametrize(
    ("time", "key_dim", "value_dim", "size"),
    [
        (8192, 64, 64, 256),
        (8192, 4, 320, 64),
        (8192, 128, 256, 256),
        (8192, 512, 512, 512),
        (2048, 1024, 1024, 512),
        (100, 1024, 1024, 128),
        (2, 64, 64, 64),
    ],
)
def test_wide_heads_take_longer_chunks(time, key_dim, value_dim, size):
    assert default_chunk_size(time, key_dim, value_dim) == size
    assert np.log2(size) % 1 == 0
