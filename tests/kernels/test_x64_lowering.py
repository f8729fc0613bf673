"""With jax_enable_x64 the kernels of TPUs and GPUs are the kernels without: nothing widens."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import mlstm, slstm
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front
from tests.kernels.test_attention_lowering import lowered as attention_lowered
from tests.kernels.test_attention_lowering import splash_kernels
from tests.kernels.test_gpu_lowering import needs_mosaic_gpu

DEVICES = {
    "pallas_tpu": ("tpu", "tpu", "TPU v5p"),
    "pallas_triton": ("cuda", "gpu", "NVIDIA A100-SXM4-80GB"),
    "pallas_gpu": ("cuda", "gpu", "NVIDIA H100 80GB HBM3"),
}
# the calls of kernels in a lowered program
CALLS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")


def lowered(backend, function, arguments) -> str:
    """The program for the backend's device, which is not here."""
    lowering, platform, kind = DEVICES[backend]
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        structs = [jax.ShapeDtypeStruct(*argument) for argument in arguments]
        traced = jax.jit(function).trace(*structs)
        return traced.lower(lowering_platforms=(lowering,)).as_text()


def mlstm_gradients(backend) -> str:
    def loss(q, k, v, i, f, ids):
        return mlstm(q, k, v, i, f, segment_ids=ids, backend=backend)[0].astype(jnp.float32).sum()

    x, gate = ((2, 256, 2, 128), "bfloat16"), ((2, 256, 2), "float32")
    arguments = (x, x, x, gate, gate, ((2, 256), "int64"))
    return lowered(backend, jax.grad(loss, argnums=range(5)), arguments)


def slstm_gradients(backend) -> str:
    def loss(x, R, bias, ids):
        h, _ = slstm(x, R, bias, segment_ids=ids, backend=backend)
        return h.astype(jnp.float32).sum()

    x, R, bias = (2, 32, 4, 2, 64), (4, 2, 64, 64), (4, 2, 64)
    arguments = ((x, "bfloat16"), (R, "bfloat16"), (bias, "float32"), ((2, 32), "int64"))
    return lowered(backend, jax.grad(loss, argnums=range(3)), arguments)


def gradients_around_cells(backend) -> str:
    """Of `mlstm_front`, the cell's values in place of the cell, and `mlstm_back`."""

    def loss(u, query, key, value, kernel, bias, scale):
        q, k, v, gates = mlstm_front(u, u, query, key, value, kernel, bias, backend=backend)
        h = (q + k + v).reshape(2, 256, 2, 128)
        y = mlstm_back(h, scale, u, eps=1e-6, activation="sigmoid", backend=backend)
        return y.astype(jnp.float32).sum() + gates.sum()

    u, matrix = ((2, 256, 256), "bfloat16"), ((64, 4, 4), "float32")
    weights = (matrix, matrix, matrix, ((768, 4), "float32"), ((4,), "float32"))
    arguments = (u, *weights, ((256,), "float32"))
    return lowered(backend, jax.grad(loss, argnums=range(7)), arguments)


@pytest.mark.parametrize(
    ("gradients", "backend"),
    [
        (mlstm_gradients, "pallas_tpu"),
        (mlstm_gradients, "pallas_triton"),
        pytest.param(mlstm_gradients, "pallas_gpu", marks=needs_mosaic_gpu),
        (gradients_around_cells, "pallas_tpu"),
        (gradients_around_cells, "pallas_triton"),
        (slstm_gradients, "pallas_tpu"),
        pytest.param(slstm_gradients, "pallas_gpu", marks=needs_mosaic_gpu),
    ],
)
def test_an_op_has_the_kernels_that_it_has_without(gradients, backend):
    with jax.enable_x64(True):
        program = gradients(backend)
    assert any(name in program for name in CALLS)
    assert "xf64>" not in program


def test_attention_on_a_tpu_goes_by_blocks_as_the_librarys_kernel_can_not_be_traced():
    with jax.enable_x64(True):
        assert not splash_kernels(attention_lowered("tpu", "TPU v5p", "bfloat16"))
        with pytest.raises(NotImplementedError, match="can't be traced with jax_enable_x64"):
            attention_lowered("tpu", "TPU v5p", "bfloat16", backend="pallas_tpu")
