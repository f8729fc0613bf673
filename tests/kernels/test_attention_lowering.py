"""Which form of attention a program for a GPU or a TPU contains; no device is needed to see it."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot_tpu
from pallas_kernels.attention import AttentionState, attention

H, G = 8, 2
CUDNN = "__cudnn$fmhaSoftmax"


def lowered(platform, kind, dtype, documents=False, cache=False, key_dim=64, **options):
    """The program of value and gradients, as it is handed to that device's compiler."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        compiler = "cuda" if platform == "gpu" else platform
        loss, arguments = case(dtype, documents, cache, key_dim, **options)
        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
        return jax.jit(gradient).trace(*arguments).lower(lowering_platforms=(compiler,)).as_text()


def case(dtype, documents, cache, key_dim, **options):
    batch, time = 2, 1000
    arguments = [jax.ShapeDtypeStruct((batch, time, heads, key_dim), dtype) for heads in (H, G, G)]
    if documents:
        arguments.append(jax.ShapeDtypeStruct((batch, time), "int32"))

    def loss(q, k, v, ids=None):
        state = AttentionState.empty(batch, 256, G, key_dim, key_dim, dtype) if cache else None
        y, _ = attention(q, k, v, state, segment_ids=ids, **options)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    return loss, arguments


def splash_kernels(program):
    return sorted(set(re.findall(r'kernel_name = "splash_mha_(fwd|dkv|dq)\w*"', program)))


@pytest.fixture
def cudnn_installed(monkeypatch):
    """As where the CUDA wheels are installed: jax asks cuDNN for nothing but its version."""

    class Versions:
        @staticmethod
        def cudnn_get_version():
            return 91100

    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", Versions)


@pytest.mark.parametrize("kind", ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_cudnn_on_a_gpu(cudnn_installed, kind, dtype):
    program = lowered("gpu", kind, dtype)
    assert CUDNN in program
    assert f"{CUDNN}Backward" in program


@pytest.mark.parametrize(
    "given",
    ({"dtype": "float32"}, {"documents": True}, {"cache": True}, {"key_dim": 300}),
    ids=str,
)
def test_what_cudnn_does_not_serve_goes_by_blocks(cudnn_installed, given):
    program = lowered("gpu", "NVIDIA H100", **({"dtype": "bfloat16"} | given))
    assert "cudnn" not in program
    assert "1000x1000" not in program
    with pytest.raises(NotImplementedError, match="cuDNN's attention"):
        lowered("gpu", "NVIDIA H100", **({"dtype": "bfloat16"} | given), backend="cudnn")


def test_without_cudnn_the_reason_is_given(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", None)
    assert "cudnn" not in lowered("gpu", "NVIDIA H100", "bfloat16")
    with pytest.raises(NotImplementedError, match="cuDNN is not installed where this program"):
        lowered("gpu", "NVIDIA H100", "bfloat16", backend="cudnn")


@pytest.mark.parametrize("documents", (False, True))
@pytest.mark.parametrize("cache", (False, True))
def test_the_librarys_kernel_on_a_tpu(documents, cache):
    assert splash_kernels(lowered("tpu", "TPU v5p", "bfloat16", documents, cache)) == [
        "dkv",
        "dq",
        "fwd",
    ]


def test_float32_on_a_tpu_goes_by_blocks():
    assert not splash_kernels(lowered("tpu", "TPU v5p", "float32"))
    with pytest.raises(NotImplementedError, match="multiplies in bfloat16"):
        lowered("tpu", "TPU v5p", "float32", backend="pallas_tpu")


@pytest.mark.parametrize("backend", ("cudnn", "pallas_tpu"))
def test_kernels_of_a_device_are_refused_on_others(backend):
    with pytest.raises(NotImplementedError, match="GPU|TPU"):
        lowered("cpu", "cpu", "bfloat16", backend=backend)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install libtpu",
)
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize("key_dim", (64, pytest.param(128, marks=pytest.mark.slow)))
def test_the_tpus_compiler_takes_the_kernel(key_dim):
    loss, arguments = case("bfloat16", True, False, key_dim)
    program = aot_tpu.lowered(jax.grad(loss, argnums=(0, 1, 2)), arguments, "v5e")
    assert splash_kernels(program.as_text()) == ["dkv", "dq", "fwd"]
    assert "tpu_custom_call" in program.compile().as_text()
