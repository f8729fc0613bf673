"""The mLSTM's Triton kernels, interpreted, against the float64 reference. test_gpu_lowering.py
lowers them for real GPUs.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import mlstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm import pallas_triton_tiles
from pallas_kernels.mlstm.pallas_triton import default_blocks
from pallas_kernels.testing import pallas_backend, specs
from pallas_kernels.testing.specs import Spec

QUICK = [spec for spec in specs.MLSTM if spec.T <= 64]
LONG = [spec for spec in specs.MLSTM if spec.T > 64]


@pytest.mark.parametrize("spec", QUICK, ids=lambda spec: spec.name)
def test_values_and_gradients(spec):
    pallas_backend.check("pallas_triton", spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", LONG, ids=lambda spec: spec.name)
def test_values_and_gradients_of_long_and_odd_cases(spec):
    pallas_backend.check("pallas_triton", spec)


@pytest.mark.slow
def test_float16():
    """Multiplied as float32, its error is the rounding of h and the gradients to float16."""
    pallas_backend.check(
        "pallas_triton", Spec("float16", 65, K=16, V=32, dtype="float16", documents="borders")
    )


@pytest.mark.slow
@pytest.mark.parametrize(("K", "V"), ((192, 16), (16, 192), (8, 24)))
def test_heads_of_several_tiles_and_of_less_than_one(K, V):
    """Sizes that are no power of two, as the paper's 384 and 768 are not: several tiles, and one
    that is filled up.
    """
    pallas_backend.check(
        "pallas_triton",
        Spec(f"{K}-{V}", 65, K=K, V=V, B=1, H=2, dtype="float32", documents="borders"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", (16, 128))
def test_chunk_size_changes_nothing(chunk):
    spec = Spec("chunk", 100, K=16, V=16, dtype="float32", documents="borders", chunk=chunk)
    pallas_backend.check("pallas_triton", spec, chunk_size=chunk)


@pytest.fixture
def traced_anew():
    """Kernels are traced once for calls that are alike: not with a product of another test."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("traced_anew")
def test_three_tf32_products_are_enough_for_float32(monkeypatch):
    """What a GPU computes for float32, in NumPy's words: x = high + low, each with TF32's 10 bits,
    and high·high + high·low + low·high.
    """

    def tf32(x):  # the nearest number of 10 bits, ties away from zero as the hardware's conversion
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return jax.lax.bitcast_convert_type((bits + 0x1000) & jnp.uint32(0xFFFFE000), jnp.float32)

    exact = pallas_triton_tiles.dot

    def split(x, y, contract=(1, 0), *, tensor_cores):
        x_high, y_high = tf32(x), tf32(y)
        x_low, y_low = tf32(x - x_high), tf32(y - y_high)
        products = ((x_low, y_high), (x_high, y_low), (x_high, y_high))
        return sum(exact(a, b, contract, tensor_cores=tensor_cores) for a, b in products)

    monkeypatch.setattr(pallas_triton_tiles, "dot", split)
    spec = Spec("tf32x3", 129, K=64, V=64, B=1, dtype="float32", documents="borders")
    errors = pallas_backend.check("pallas_triton", spec)
    assert max(errors.values()) < 2e-5


def test_what_it_does_not_serve():
    """The reason is in the error, and no work was done."""
    q, gate = jnp.zeros((1, 32, 1, 16), jnp.bfloat16), jnp.zeros((1, 32, 1))
    calls = {
        "all bfloat16": ([q, q.astype(jnp.float32), q, gate, gate], {}),
        "chunk_size must be one of": ([q, q, q, gate, gate], {"chunk_size": 48}),
    }
    with interpreted(True):
        for reason, (arguments, options) in calls.items():
            with pytest.raises(NotImplementedError, match=reason):
                mlstm(*arguments, backend="pallas_triton", **options)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        mlstm(q, q, q, gate, gate, backend="pallas_triton")


@pytest.mark.parametrize("kind", ("NVIDIA A100-SXM4-80GB", "NVIDIA H200"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_default_blocks(kind, dtype):
    """Powers of two, chunks that fit registers, longer ones for wide heads, no chunk much longer
    than the sequence.
    """
    for dim in (16, 64, 384, 1024):
        blocks = default_blocks(2048, dim, dim, dtype, kind)
        assert all(size & (size - 1) == 0 for size in blocks)
        assert blocks.chunk <= (128 if "H200" in kind else 64)
        assert default_blocks(20, dim, dim, dtype, kind).chunk == 32
    assert (
        default_blocks(2048, 512, 512, dtype, kind).chunk
        >= default_blocks(2048, 64, 64, dtype, kind).chunk
    )


def test_a_gpu_before_ampere_is_refused():
    device = jax.sharding.AbstractDevice(
        device_kind="Tesla V100-SXM2-16GB", num_cores=None, platform="gpu"
    )
    q, gate = jnp.zeros((1, 32, 1, 16), jnp.bfloat16), jnp.zeros((1, 32, 1))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        with pytest.raises(NotImplementedError, match="sm_80"):
            mlstm(q, q, q, gate, gate, backend="pallas_triton")
