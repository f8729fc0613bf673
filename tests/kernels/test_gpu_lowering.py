"""Every GPU kernel is lowered for A100, H100 and H200, with no GPU: its Triton or Mosaic IR is well
formed there.

`make aot-gpu` goes further, to machine code, in an environment with jax[cuda13]; its report is
docs/aot_gpu.md.
"""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import MLSTMState, SLSTMState, mlstm, slstm
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front
from pallas_kernels.testing.specs import MODELS

GPUS = {"A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200"}
MLSTM_HEADS = MODELS | {"narrow": (16, 128, 256)}
SLSTM_HEADS = {
    "125m": (4, 192),
    "350m": (4, 256),
    "760m": (4, 384),
    "1.3b": (4, 512),
    "narrow": (12, 64),
    "smallest": (2, 16),
}

needs_mosaic_gpu = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason='"pallas_gpu" needs jax >= 0.11, and says so'
)


def case(*values, quick=False):
    return pytest.param(*values, id="-".join(values), marks=() if quick else pytest.mark.slow)


def lowered_for(gpu, function, arguments):
    """The program of a function of arrays of these (shape, dtype), as it is handed to the compiler
    of that GPU.
    """
    device = jax.sharding.AbstractDevice(device_kind=GPUS[gpu], num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        structs = [jax.ShapeDtypeStruct(*x) for x in arguments]
        return jax.jit(function).trace(*structs).lower(lowering_platforms=("cuda",)).as_text()


def triton_kernels(program):
    """Name -> calls, of the Triton kernels in a program."""
    found = re.findall(r'custom_call @__gpu\$xla\.gpu\.triton\(.*?name = "(\w+)"', program)
    return collections.Counter(found)


def total(result):
    h, state = result
    return sum(jnp.sum(x.astype(jnp.float32)) for x in (h, *state[:2]))


def mlstm_step(gpu, model, backend, dtype="bfloat16", T=2048, **options):
    """A paper's model's head dims (or other ones), documents, an initial state: h and the last
    state, and the gradients of all inputs.
    """
    heads, K, V = MLSTM_HEADS.get(model, model)
    B = 2
    tokens = (
        [((B, T, heads, K), dtype)] * 2
        + [((B, T, heads, V), dtype)]
        + [((B, T, heads), "float32")] * 2
    )
    state = [((B, heads, K, V), "float32"), ((B, heads, K), "float32"), ((B, heads), "float32")]

    def loss(q, k, v, i, f, C, n, m, ids):
        state = MLSTMState(C, n, m)
        return total(mlstm(q, k, v, i, f, state, segment_ids=ids, backend=backend, **options))

    return lowered_for(
        gpu, jax.value_and_grad(loss, argnums=range(8)), (*tokens, *state, ((B, T), "int32"))
    )


# An H100 and an H200 differ in nothing that a kernel sees: they share the models.
# benchmarks/aot_gpu.py compiles all on all.
@pytest.mark.parametrize(
    ("gpu", "model"),
    [
        case("A100", "125m", quick=True),
        *(case("A100", model) for model in ("1.3b", "7b")),
        case("H200", "narrow"),
    ],
)
def test_triton_kernels_of_the_mlstm(gpu, model):
    found = triton_kernels(mlstm_step(gpu, model, "pallas_triton"))
    assert found == {"mlstm_walk": 3, "mlstm_outputs": 1, "mlstm_keys": 1, "mlstm_values": 1}


@pytest.mark.parametrize("model", ("125m", "7b"))
def test_triton_kernels_refuse_wide_heads_on_hopper(model):
    """They gave other results at each call there."""
    with pytest.raises(NotImplementedError, match='not reliable on a NVIDIA H200; "pallas_gpu"'):
        mlstm_step("H200", model, "pallas_triton")


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_triton_kernels_of_other_types(dtype):
    assert triton_kernels(mlstm_step("A100", "7b", "pallas_triton", dtype)).total() == 6


@pytest.mark.parametrize(("gpu", "dtype"), [("A100", "float32"), ("H100", "bfloat16")])
def test_triton_kernels_before_the_mlstm(gpu, dtype):
    """Of the 125M model: one forward, one backward."""
    B, T, inner, G = 2, 2048, 1536, 8
    weights = [*[(inner // 4, 4, 4)] * 3, (3 * inner, G), (G,)]
    arrays = [((B, T, inner), dtype)] * 2 + [(shape, "float32") for shape in weights]

    def loss(*arrays):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in mlstm_front(*arrays))

    program = lowered_for(gpu, jax.value_and_grad(loss, argnums=range(7)), arrays)
    names = ("mlstm_front", "mlstm_front_back")
    assert triton_kernels(program) == dict.fromkeys(names, 1)


@pytest.mark.parametrize(("gpu", "V", "skip"), [("A100", 384, True), ("H100", 512, False)])
def test_triton_kernels_behind_the_mlstm(gpu, V, skip):
    """Of the 125M and the 7B model: one forward, one backward."""
    B, T, H = 2, 2048, 4
    inner, row = ((B, T, H * V), "bfloat16"), ((H * V,), "float32")
    arrays = [((B, T, H, V), "bfloat16"), row, inner, *([inner, row] if skip else [])]
    activation = "silu" if skip else "sigmoid"

    def loss(*arrays):
        return jnp.sum(mlstm_back(*arrays, eps=1e-6, activation=activation).astype(jnp.float32))

    program = lowered_for(gpu, jax.value_and_grad(loss, argnums=range(len(arrays))), arrays)
    assert triton_kernels(program) == {"mlstm_back": 1, "mlstm_back_back": 1}


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "model"),
    [case("H100", "125m"), case("H200", "1.3b"), case("H200", "7b"), case("H100", "narrow")],
)
def test_mosaic_gpu_kernels_of_the_mlstm(gpu, model):
    """Forward a walk, the pairs and the output; backward a walk (the states are those of the
    forward pass), the pairs, their gradient, dv, dq, dk. Narrow heads have no pairs in memory.
    """
    calls = mlstm_step(gpu, model, "pallas_gpu").count("custom_call @mosaic_gpu")
    assert calls == (6 if model == "narrow" else 9)


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("K", "V", "options", "calls"),
    [
        (64, 64, {"T": 20}, 9),
        (64, 64, {"chunk_size": 64}, 9),
        (128, 256, {"chunk_size": 128}, 6),
        (256, 64, {"input_gate": "sigmoid"}, 6),
        (192, 192, {}, 6),
        (128, 256, {"chunk_size": 512}, 9),
    ],
    ids=lambda x: str(x),
)
def test_narrow_heads_in_every_chunk(K, V, options, calls):
    """What the simulator does not do: layouts are found, copies are short enough."""
    program = mlstm_step("H100", (2, K, V), "pallas_gpu", **options)
    assert program.count("custom_call @mosaic_gpu") == calls


@needs_mosaic_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "model"),
    [
        *(case("H100", model) for model in ("125m", "760m", "narrow")),
        *(case("H200", model) for model in ("350m", "1.3b", "smallest")),
    ],
)
def test_mosaic_gpu_kernels_of_the_slstm(gpu, model):
    heads, V = SLSTM_HEADS[model]
    B, T = 16, 64
    x = [
        ((B, T, 4, heads, V), "bfloat16"),
        ((4, heads, V, V), "bfloat16"),
        ((4, heads, V), "float32"),
    ]

    def loss(x, R, bias, c, n, h, m, ids):
        return total(
            slstm(x, R, bias, SLSTMState(c, n, h, m), segment_ids=ids, backend="pallas_gpu")
        )

    arguments = (*x, *[((B, heads, V), "float32")] * 4, ((B, T), "int32"))
    assert (
        lowered_for(gpu, jax.value_and_grad(loss, argnums=range(7)), arguments).count(
            "custom_call @mosaic_gpu"
        )
        >= 2
    )
