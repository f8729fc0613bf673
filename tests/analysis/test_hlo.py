"""Bytes of collectives and calls of kernels are read from programs that jax compiled, and from the
forms that TPUs have.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from xlstm_jax.analysis.compiled.program import arrays
from xlstm_jax.analysis.hlo import collective_bytes, kernel_calls


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() >= 8, "tests/conftest.py gives the CPU eight devices"
    return jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))


def compiled(function, mesh, *arrays):
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arrays
    ]
    return (
        jax.jit(function, out_shardings=NamedSharding(mesh, P())).lower(*arrays).compile().as_text()
    )


def test_a_sum_over_devices(mesh):
    """Each device's part of x.T @ x is [16 16] float32."""
    text = compiled(lambda x: x.T @ x, mesh, ((64, 16), P("devices")))
    assert collective_bytes(text) == {"all-reduce": 16 * 16 * 4}


def test_an_array_that_is_gathered(mesh):
    text = compiled(lambda x: x + 1, mesh, ((64, 16), P("devices")))
    assert collective_bytes(text) == {"all-gather": 64 * 16 * 4}


def test_what_is_in_a_loop_counts_as_often_as_it_runs(mesh):
    def loop(x):
        return jax.lax.scan(
            lambda y, _: (jnp.tanh(y @ (x.T @ x)), None), jnp.ones((16, 16)), length=5
        )[0]

    def sum_in_the_loop(x):
        return jax.lax.scan(
            lambda y, row: (jnp.tanh(y + jnp.sum(x * row)), None), jnp.zeros(()), jnp.arange(5.0)
        )[0]

    assert (
        collective_bytes(compiled(loop, mesh, ((64, 16), P("devices"))))["all-reduce"]
        % (16 * 16 * 4)
        == 0
    )
    assert collective_bytes(compiled(sum_in_the_loop, mesh, ((64, 16), P("devices")))) == {
        "all-reduce": 5 * 4
    }


def test_one_device_moves_nothing(mesh):
    assert (
        collective_bytes(jax.jit(lambda x: x.T @ x).lower(jnp.ones((8, 8))).compile().as_text())
        == {}
    )


TPU = """
HloModule step

%fused (p: bf16[8,4]) -> bf16[64,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,4]{1,0} all-gather(%p), dimensions={0}
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %ag = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%x), dimensions={0}
  %ars = f32[16]{0} all-reduce-start(%y), to_apply=%add
  %cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%z)
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="mlstm"}
}

%fused.start (param_0: bf16[8,4]) -> bf16[64,4] {
  %all-gather.7 = bf16[64,4]{1,0} all-gather(%param_0), channel_id=3, dimensions={0}, frontend_attributes={chain_id="4"}
}

%fused.in_the_loop (param_0: bf16[8,4]) -> bf16[64,4] {
  %all-gather.8 = bf16[64,4]{1,0} all-gather(%param_0), channel_id=3, dimensions={0}, frontend_attributes={chain_id="4"}
}

%wide.condition (t: (s32[], bf16[8,4])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(8), backend_config={}
  ROOT %lt.59 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.5), direction=LT
}

%wide.body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %rs = f32[4]{0:T(128)} reduce-scatter(%x), dimensions={0}, to_apply=%add
  %part = bf16[64,4]{1,0} fusion(%x), kind=kCustom, calls=%fused.in_the_loop
}

ENTRY %main.1 (x: bf16[8,4]) -> bf16[64,4] {
  %while.1 = (s32[], bf16[8,4]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"48"}}
  %while.2 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) while(%t), condition=%wide.condition, body=%wide.body, backend_config={}
  %f = bf16[64,4]{1,0} fusion(%x), kind=kCustom, calls=%fused
  %begin = bf16[64,4]{1,0} fusion(%x), kind=kCustom, calls=%fused.start
  %other = f32[8]{0} custom-call(%x), custom_call_target="Sharding"
}
"""  # noqa: E501  (as the compiler writes it)


def test_asynchronous_and_fused_collectives_and_kernels_in_loops():
    assert collective_bytes(TPU) == {
        "all-gather": 48 * 64 * 4 * 2 + 64 * 4 * 2 + 64 * 4 * 2,  # the last: the chain, once
        "all-reduce": 48 * 64,
        "collective-permute": 48 * 16,
        "reduce-scatter": 8 * 16,
    }
    assert kernel_calls(TPU) == {"pallas_tpu": 48}
    for target, backend in (
        ("mosaic_gpu", "pallas_gpu"),
        ("mosaic_gpu_v2", "pallas_gpu"),
        ("__gpu$xla.gpu.triton", "pallas_triton"),
        ("__cudnn$fmhaSoftmax", "cudnn"),
        ("__cudnn$fmhaSoftmaxBackward", "cudnn"),
    ):
        assert kernel_calls(TPU.replace("tpu_custom_call", target)) == {backend: 48}


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("f32", "8,128", 4096), ("bf16", "", 2), ("pred", "3", 3), ("s8", "8", 8)],
)
def test_bytes_of_an_array(dtype, shape, size):
    assert [array.bytes for array in arrays(f"{dtype}[{shape}]")] == [size]
