"""What a compiled program will do: bytes, FLOPs, launches, parts and source lines of its kernels,
and the time that a chip should take for them.

The programs in programs/ are excerpts of two training steps that were measured on an H100, as
jax 0.11.2 compiles them for one. The other tests have programs of a few lines.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.chips import chip_of
from xlstm_jax.analysis.compiled.kernels import Kernel, kernels_of
from xlstm_jax.analysis.compiled.program import read_program
from xlstm_jax.analysis.compiled.rates import filled, time_of
from xlstm_jax.analysis.compiled.step_model import model_of
from xlstm_jax.analysis.compiled.work import Product

STORED = pathlib.Path(__file__).parent / "programs"
H100 = "NVIDIA H100"

# instruction: times, GFLOP, MB read, MB written, part, measured ms of all kernels alike, how many
# kinds of them are alike (those of the excerpt are the first)
SMALL_STEP = {
    "gemm_fusion_dot.59": (24, 0.8, 201, 201, "products", 96.81, 6),
    "gemm_fusion_dot.87": (24, 0.8, 403, 0, "products", 52.18, 3),
    "mpmd_map.60": (24, 0.0, 1026, 204, "mlstm", 45.06 * 1230 / 5338, 1),  # by its bytes of all
    "mpmd_map.40": (24, 0.0, 479, 226, "mlstm", 26.88, 4),
    "gemm_fusion_dot_general.29": (64, 79.1, 104, 101, "loss", 25.74, 1),
    "gemm_fusion_dot_general.23": (64, 79.1, 102, 103, "loss", 23.99, 2),
    "gemm_fusion_dot_general.75": (24, 154.6, 103, 201, "products", 18.61, 4),
    "gemm_fusion_dot.82": (64, 79.1, 204, 10, "loss", 17.60, 1),
    "fusion.241": (24, 0.0, 404, 201, "norms", 13.88, 1),
    "loop_add_fusion.3": (64, 0.0, 302, 201, "loss", 10.50, 1),
    "loop_multiply_fusion.5": (24, 0.0, 201, 201, "elementwise", 10.12, 2),
    "fusion.581": (24, 0.0, 604, 201, "elementwise", 9.89, 1),
    "gemm_fusion_dot.62": (24, 1.6, 201, 2, "products", 7.22, 4),
}
LARGE_STEP = {
    "gemm_fusion_dot_general.50": (24, 1477.5, 291, 721, "products", 235.96, 5),
    "gemm_fusion_dot.2": (24, 1477.5, 990, 23, "products", 104.16, 2),
    "gemm_fusion_dot_general.25": (64, 211.0, 106, 268, "loss", 64.88, 1),
    "gemm_fusion_dot_general.48": (24, 549.8, 277, 268, "products", 44.24, 2),
    "loop_multiply_fusion.4": (24, 0.0, 1443, 721, "elementwise", 50.01, 3),
    "fusion.677": (24, 0.0, 537, 268, "norms", 18.71, 1),
    "gemm_fusion_dot.24": (64, 211.0, 371, 13, "loss", 34.88, 1),
}


def kernels(text: str) -> dict[str, Kernel]:
    program = read_program(text.replace("HEADER", HEADER))
    return {kernel.instruction: kernel for kernel in kernels_of(program)}


@pytest.mark.parametrize(
    ("file", "expected"), [("h100_125m.hlo", SMALL_STEP), ("h100_1.4b.hlo", LARGE_STEP)]
)
def test_the_kernels_of_two_measured_steps(file, expected):
    found = kernels((STORED / file).read_text())
    assert found.keys() == expected.keys()
    for name, (times, gflop, read, written, part, measured, kinds) in expected.items():
        kernel = found[name]
        counted = (kernel.times, round(kernel.flops / 1e9, 1))
        assert counted == (times, gflop), name
        assert (round(kernel.read / 1e6), round(kernel.written / 1e6)) == (read, written), name
        assert kernel.part == part, name
        took = 1e3 * times * kinds * time_of(kernel, chip_of(H100)).seconds
        assert took == pytest.approx(measured, rel=0.2), name


def test_a_kernel_is_traced_to_its_source_line():
    step = kernels((STORED / "h100_125m.hlo").read_text())
    product = step["gemm_fusion_dot.59"]
    assert product.place == "layers.py:134 < mlstm_blocks.py:144 < backbone.py:156"
    assert product.frames[0].file == "xlstm_jax/models/layers.py"
    assert product.shapes == "bf16[384,4,4], bf16[65536,384,4] -> bf16[65536,384,4]"
    assert product.name.endswith("blocks_0/query/btni,nio->btno/dot_general")


HEADER = """
HloModule small

FileNames
1 "/anywhere/train.py"
2 "/anywhere/site-packages/flax/linen/module.py"
3 "/anywhere/xlstm_jax/models/layers.py"
4 "/anywhere/xlstm_jax/training/step.py"

FunctionNames
1 "main"
2 "RMSNorm.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=8 end_line=8 column=1 end_column=2}
3 {file_name_id=3 function_name_id=2 line=9 end_line=9 column=1 end_column=2}
4 {file_name_id=4 function_name_id=1 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=1}

"""

LOOP = """HEADER
%square (p: f32[1000,8]) -> f32[8] {
  %p = f32[1000,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,8}
  ROOT %product = f32[1,8]{1,0} multiply(%row, %row), metadata={op_name="n" stack_frame_id=3}
}

%put (stack: f32[1000,8], row: f32[1,8], i: s32[]) -> f32[1000,8] {
  %stack = f32[1000,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[1000,8]{1,0} dynamic-update-slice(%stack, %row, %i, %zero)
}

%condition (t: (s32[])) -> pred[] {
  %bound = s32[] constant(1000)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%inner (t: (s32[])) -> (s32[]) {
  %stack = f32[1000,8]{1,0} get-tuple-element(%t), index=0
  %i = s32[] get-tuple-element(%t), index=1
  %rows = f32[1,8]{1,0} fusion(%stack, %i), kind=kLoop, calls=%square
  %all = f32[1000,8]{1,0} fusion(%stack, %rows, %i), kind=kLoop, calls=%put
}

%outer (t: (s32[])) -> (s32[]) {
  %again = (s32[]) while(%t), condition=%condition, body=%inner, backend_config={TRIPS}
}

ENTRY %main (t: (s32[])) -> (s32[]) {
  %t = (s32[]) parameter(0)
  %loop = (s32[]) while(%t), condition=%condition, body=%outer, backend_config={TRIPS}
}
"""
KNOWN = LOOP.replace("TRIPS", '"known_trip_count":{"n":"5"}')


def test_loops_in_loops_count_with_their_trips_and_stacks_with_the_row_that_is_touched():
    found = kernels(KNOWN)
    assert found.keys() == {"rows", "all"}
    assert {kernel.times for kernel in found.values()} == {25}
    assert (found["rows"].read, found["rows"].written) == (32 + 4, 32)
    assert (found["all"].read, found["all"].written) == (32 + 4, 32)
    assert found["all"].work.steps == 4 * 8
    assert (found["rows"].part, found["all"].part) == ("norms", "copies")
    assert found["rows"].place == "layers.py:9 < anywhere/train.py:7"


def test_trips_that_the_program_does_not_tell_are_read_from_the_condition():
    assert kernels(LOOP.replace("TRIPS", ""))["rows"].times == 1000**2


def test_a_loop_that_ends_by_its_data_counts_as_one_trip_with_its_condition():
    found = kernels(LOOP.replace("TRIPS", "").replace("direction=LT", "direction=EQ"))
    assert {name: kernel.times for name, kernel in found.items()} == {
        "rows": 1,
        "all": 1,
        "less": 2,
    }


CALLS = """HEADER
%fused (a: bf16[256,64], b: bf16[64,128]) -> bf16[256,128] {
  %a = bf16[256,64]{1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  %dot = f32[256,128]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gate = f32[256,128]{1,0} tanh(%dot), metadata={op_name="g" stack_frame_id=3}
  ROOT %out = bf16[256,128]{1,0} convert(%gate)
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

ENTRY %main (a: bf16[256,64], b: bf16[64,128]) -> bf16[256,128] {
  %a = bf16[256,64]{1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  %c = bf16[256,128]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %v = (bf16[256,128]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %k = bf16[256,128]{1,0} custom-call(%c, %c, %b), custom_call_target="mosaic_gpu_v2", metadata={op_name="step/mlstm_pairs/call"}, backend_config={module = "body=%sum, calls=%fused"}
  %s = f32[]{:S(1)} custom-call(%k), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"500","bytes_accessed":"7"}}}
  %r = f32[256]{0} reduce(%k, %z), dimensions={1}, to_apply=%sum, metadata={op_name="u" stack_frame_id=4}
  %g = (f32[256]{0}, f32[1024]{0}) all-gather-start(%r), dimensions={0}
  %h = f32[1024]{0} all-gather-done(%g)
}
"""  # noqa: E501  (as the compiler writes it)


def test_fusions_custom_calls_and_collectives():
    found = kernels(CALLS)
    assert found.keys() == {"c", "v", "k", "s", "r", "g"}
    assert found["c"].flops == found["v"].flops == 2 * 256 * 64 * 128
    assert found["c"].work.transcendental and not found["v"].work.transcendental
    assert (found["c"].read, found["c"].written) == (2 * 256 * 64 + 2 * 64 * 128, 2 * 256 * 128)
    assert found["c"].part == found["v"].part == "products"
    assert found["k"].read == 2 * 256 * 128 + 2 * 64 * 128, "an operand given twice is read once"
    assert (found["k"].emitter, found["k"].is_pallas) == ("mosaic_gpu_v2", True)
    assert (found["s"].estimated_flops, found["s"].written) == (500, 0), "a result on the chip"
    assert (found["r"].part, found["r"].work.steps) == ("optimizer", 256 * 128)
    assert (found["g"].part, found["g"].read, found["g"].written) == ("collectives", 1024, 4096)


def test_products_of_the_tpu_are_convolutions():
    text = """
ENTRY %main (a: bf16[8,256,64], b: bf16[8,64,128]) -> f32[8,256,128] {
  %a = bf16[8,256,64]{2,1,0} parameter(0)
  %b = bf16[8,64,128]{2,1,0} parameter(1)
  %c = bf16[256,64]{1,0} parameter(2)
  %d = bf16[64,128]{1,0} parameter(3)
  %plain = f32[256,128]{1,0} convolution(%c, %d), dim_labels=bf_io->bf
  %batched = f32[8,256,128]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501  (as the compiler writes it)
    found = kernels(text)
    assert found["plain"].flops == 2 * 256 * 64 * 128
    assert found["batched"].flops == 8 * found["plain"].flops


def test_a_batched_product_of_the_tpu_may_fill_up_its_input():
    """bthv,ghvw->btghw and its gradients, as compiled for a v5p: 4 rows of 2048 tokens, 2 gates, 4
    heads of 512 channels. Most taps of the windows lie between the input's elements or beyond them.
    """
    text = """
ENTRY %main (k: bf16[2,4,512,512,1], x: bf16[4,2048,4,512,1]) -> bf16[4,2,512,4,2048] {
  %k = bf16[2,4,512,512,1]{3,2,4,0,1} parameter(0)
  %x = bf16[4,2048,4,512,1]{3,1,0,4,2} parameter(1)
  %y = bf16[4,2,512,4,2048]{4,2,3,1,0} convolution(%k, %x), window={size=4x1x4 stride=3x1x1 pad=0_0x0_0x3_3 lhs_dilate=4x1x1 rhs_reversal=0x0x1}, dim_labels=10fb2_2o0i1->01b2f
  %dx = bf16[4,4,2048,512,1]{3,2,1,4,0} convolution(%y, %k), window={size=4x1x2 stride=3x1x1 lhs_dilate=4x1x1}, dim_labels=02f1b_20oi1->01bf2
  %dk = bf16[4,2,512,512,1]{3,2,4,1,0} convolution(%y, %x), window={size=4x1x4 stride=3x1x1 lhs_dilate=4x1x1}, dim_labels=01b2f_2i0o1->01bf2
}
"""  # noqa: E501  (as the compiler writes it)
    found = kernels(text)
    assert {found[name].flops for name in ("y", "dx", "dk")} == {2 * 4 * 2048 * 2 * 4 * 512 * 512}


def test_what_bounds_a_kernel():
    found = kernels(CALLS)
    chip = chip_of(H100)
    assert time_of(found["r"], chip).bound == "launch"
    walk = """HEADER
ENTRY %main (x: bf16[2048,4,12,64,16]) -> bf16[16,2048,12,64] {
  %x = bf16[2048,4,12,64,16]{4,3,2,1,0} parameter(0)
  %h = bf16[16,2048,12,64]{3,2,1,0} custom-call(%x), custom_call_target="mosaic_gpu", metadata={op_name="jit(f)/slstm_forward/call"}
}
"""  # noqa: E501  (as the compiler writes it)
    time = time_of(kernels(walk)["h"], chip)
    assert (time.bound, time.seconds) == ("recurrence", pytest.approx(1.74e-3, rel=1e-2))


def test_the_last_round_of_tiles_leaves_multiprocessors_idle():
    product = Product(1, 2048, 65536, 5504, "bf16")
    assert filled(product, 132) == pytest.approx(16 * 22 / (3 * 132))
    assert filled(product, None) == 1
    narrow = Product(1, 128, 65536, 256, "bf16")
    assert filled(narrow, 132) == pytest.approx(8 / 132), "cut in eight along the sums"


def test_the_table_and_the_details_add_up():
    model = model_of(read_program((STORED / "h100_125m.hlo").read_text()), H100)
    parts, details = model.parts, model.details()
    assert model.milliseconds == pytest.approx(sum(part.milliseconds for part in parts.values()))
    assert model.whole.launches == sum(kernel.times for kernel, _ in model.kernels) == 472
    assert model.whole.bytes == sum(
        k["times"] * (k["read"] + k["written"]) for k in details["kernels"]
    )
    took = [kernel["times"] * kernel["microseconds"] for kernel in details["kernels"]]
    assert took == sorted(took, reverse=True)
    assert math.fsum(took) / 1e3 == pytest.approx(details["all"]["milliseconds"])
    assert json.loads(json.dumps(details)) == details
    lines = model.lines()
    assert all(len(line) <= 100 for line in lines)
    assert len([line for line in lines if " x " in line]) == 10
    assert any("layers.py:134 < mlstm_blocks.py" in line for line in lines)
    assert model_of(read_program(CALLS), "a loom") is None


def test_a_program_that_jax_compiled_here():
    """Three trips of a product and a tanh: the compiler may fuse as it likes, FLOPs stay."""

    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 32))]
    text = jax.jit(function).lower(*shapes).compile().as_text()
    found = kernels_of(read_program(text))
    assert sum(kernel.times * kernel.flops for kernel in found) == 3 * 2 * 64 * 32 * 32
