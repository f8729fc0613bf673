"""The TPU kernels, compiled by the TPU's own compiler for v5e, v5p and v6e, without a TPU: tiling,
VMEM and layouts are as on the chip.

These are some of the paper's shapes; `python -m benchmarks.aot_tpu` compiles all of them and writes
docs/aot_tpu.md.
"""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import aot_tpu
from benchmarks.aot_tpu import CHIPS, MLSTM_HEADS, SLSTM_HEADS
from pallas_kernels import MLSTMState, mlstm
from pallas_kernels.mlstm.pallas_tpu_forward import VMEM_LIMIT
from pallas_kernels.testing import specs
from xlstm_jax.config import MeshConfig
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.kernels import mlstm_front

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU's compiler is not installed: pip install libtpu",
    ),
    # no TPU can load what is in it
    pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache"),
]
slow = pytest.mark.slow

# 1024 x 1024 has the largest state, 256 x 512 is not square; T 8192 keeps states between stretches.
# All shapes: docs/aot_tpu.md.
MLSTM = [
    ("v5e", "7b", 8192, "bfloat16"),
    *(
        pytest.param(chip, model, time, dtype, marks=slow)
        for chip, model, time, dtype in (
            ("v5p", "7b", 2048, "bfloat16"),
            ("v6e", "7b", 8192, "bfloat16"),
            ("v5e", "1.3b", 2048, "bfloat16"),
            ("v5p", "1.3b", 8192, "bfloat16"),
            ("v6e", "1.3b", 2048, "bfloat16"),
            ("v5p", "125m", 2048, "float32"),
        )
    ),
]
SLSTM = [
    ("v5p", "125m"),
    pytest.param("v6e", "1.3b", marks=slow),
    pytest.param("v5e", "1.3b", marks=slow),
]


def kernels_compiled(loss, arguments, chip):
    """Names of the Pallas kernels in the program of a loss and its gradients, which that chip's
    compiler has taken.
    """
    program = aot_tpu.lowered(aot_tpu.gradient(loss, arguments), arguments, chip)
    program.compile()  # raises what the compiler refuses
    return sorted(re.findall(r"@tpu_custom_call.*?kernel_name = \"(\w+)\"", program.as_text()))


@pytest.mark.parametrize(("chip", "model", "time", "dtype"), MLSTM)
def test_mlstm_with_all_gradients(chip, model, time, dtype):
    loss, arguments = aot_tpu.mlstm_case(model, time, dtype)
    assert kernels_compiled(loss, arguments, chip) == ["mlstm_backward", "mlstm_forward"]


@pytest.mark.parametrize(("chip", "model"), SLSTM)
def test_slstm_with_all_gradients(chip, model):
    loss, arguments = aot_tpu.slstm_case(model, 2048)
    assert kernels_compiled(loss, arguments, chip) == ["slstm_backward", "slstm_forward"]


@pytest.mark.parametrize(
    ("op", "chip", "model"),
    [
        ("mlstm_back", "v5e", "125m"),
        ("mlstm_back", "v6e", "2.7b"),
        pytest.param("mlstm_front", "v5e", "125m", marks=slow),
        pytest.param("mlstm_front", "v5p", "1.3b", marks=slow),
    ],
)
def test_what_stands_around_the_cell_with_all_gradients(op, chip, model):
    case = {"mlstm_front": aot_tpu.front_case, "mlstm_back": aot_tpu.back_case}[op]
    assert kernels_compiled(*case(model, 2000), chip) == [op, f"{op}_back"]


@slow
def test_devices_add_up_the_gradients_of_small_blocks_without_filling():
    """4 x 4 blocks and 8 gates: with these last in memory TPUs add up 16 to 32 times as many
    numbers, and keep them for every block of a model.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    mesh = make_mesh(MeshConfig(data=4), devices)
    _, (inner, _, *weights) = aot_tpu.front_case("125m", 512)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    inner = jax.ShapeDtypeStruct((4, *inner.shape[1:]), inner.dtype, sharding=rows)
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in weights]

    def loss(c, u, *weights):
        front = mlstm_front(c, u, weights, backend="pallas_tpu")
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in front)

    with jax.set_mesh(mesh):
        text = (
            jax.jit(jax.grad(loss, argnums=range(2, 7)))
            .lower(inner, inner, *placed)
            .compile()
            .as_text()
        )
    sums = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    arrays = re.findall(r"f32\[([\d,]+)\]\{(\d+)", " ".join(sums))
    shapes = [[int(size) for size in dims.split(",")] for dims, _ in arrays]
    assert sum(map(math.prod, shapes)) == sum(x.size for x in weights)
    last = [shape[int(axis)] for shape, (_, axis) in zip(shapes, arrays, strict=True)]
    assert sorted(last) == [8, 384, 384, 384, 4608]


@pytest.mark.parametrize(("documents", "most"), ((False, 6), (True, 24)))
def test_the_kernels_leave_little_to_xla(documents, most):
    """Fusions and loops around the two kernels; before the kernels took the gates' maxima and
    summed their gradients: 69 and 114.
    """
    loss, arguments = aot_tpu.mlstm_case("7b", 2048, state=False, documents=documents)
    text = aot_tpu.lowered(aot_tpu.gradient(loss, arguments), arguments, "v5e").compile().as_text()
    program = text[text.index("\nENTRY") :].partition("\n}")[0]
    assert len(re.findall(r" (?:fusion|while)\(", program)) <= most


@pytest.mark.parametrize("input_gate", ("exponential", "sigmoid"))
def test_a_step_reads_and_writes_its_state_once(input_gate):
    """T = 1 is left to XLA, which updates C and reads it out in one fusion: C moves twice, and
    everything else is little.
    """
    _, (_, *arguments) = aot_tpu.mlstm_case("7b", 1, batch=4)
    heads, key_dim, value_dim = MLSTM_HEADS["7b"]

    def step(*x):
        return mlstm(*x[:5], MLSTMState(*x[5:]), input_gate=input_gate)

    compiled = aot_tpu.lowered(step, arguments, "v5e").compile()
    state = 4 * 4 * heads * key_dim * value_dim
    assert 2 * state < compiled.cost_analysis()["bytes accessed"] < 2.1 * state


@slow
def test_vmem_is_what_the_compiler_says():
    """For 7B; docs/aot_tpu.md has all shapes. A state is 0.5 MiB in float32, and 16 of bfloat16
    wait in the backward pass.
    """
    loss, arguments = aot_tpu.mlstm_case("7b", 2048)
    calls = aot_tpu.pallas_calls(aot_tpu.gradient(loss, arguments), arguments)
    needed = {name: aot_tpu.vmem_needed(call, "v5p") for name, call in calls.items()}
    print("VMEM, MiB:", needed)
    assert 1 < needed["mlstm_forward"] < needed["mlstm_backward"] < VMEM_LIMIT / 2**20


@pytest.mark.parametrize("chip", CHIPS)
def test_a_kernel_that_asks_for_too_much_vmem_is_refused(chip):
    """The compiler is the real one: 1 MiB is not enough for 7B's forward kernel."""
    loss, arguments = aot_tpu.mlstm_case("7b", 512)
    call = aot_tpu.pallas_calls(loss, arguments)["mlstm_forward"]
    with pytest.raises(Exception, match="exceeded scoped vmem limit"):
        aot_tpu.compile_call(call, chip, 2**20)


def test_the_shapes_are_the_models():
    assert specs.MODELS | {"2.7b": (4, 1280, 1280)} == MLSTM_HEADS
    assert SLSTM_HEADS.keys() == {"125m", "350m", "760m", "1.3b", "narrow"}
