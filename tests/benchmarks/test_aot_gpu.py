"""The report on machine code, from results that are given: what is counted, what is marked."""

from benchmarks import aot_gpu
from benchmarks.machine_code import Kernel, mosaic_kernels


def test_equal_kernels_are_one_line_and_results_of_earlier_sources_are_marked():
    first, second, failed = [case for case in aot_gpu.cases() if case.op == "mlstm"][:3]
    kernel = ["mlstm_walk", 243, 0, 99344, 8, 0]
    known = {
        str(first): {"sources": aot_gpu._sources(first), "kernels": [kernel, kernel], "error": ""},
        str(second): {
            "sources": "before",
            "kernels": [["mlstm_walk", 255, 16, 99344, 8, 0]],
            "error": "",
        },
        str(failed): {"sources": aot_gpu._sources(failed), "kernels": [], "error": "no | such GPU"},
    }
    report = aot_gpu._report(known)
    shapes = [", ".join(map(str, case.shape)) for case in (first, second, failed)]
    assert f"| {shapes[0]} | bfloat16 | mlstm_walk x 2 | 243 | 0 | 99344 | 8 | 0 |" in report
    assert f"| {shapes[1]} (earlier) | bfloat16 | mlstm_walk | 255 | 16 | 99344 | 8 | 0 |" in report
    assert f"| {shapes[2]} | bfloat16 | failed: no / such GPU |" in report
    assert (
        f"3 of {len(aot_gpu.cases())} programs, 3 kernels, 1 with spills; 1 programs failed. 1 "
        f"programs, marked" in report
    )


def test_every_backend_is_compiled_for_every_gpu_it_serves():
    found = {(case.op, case.backend, case.target) for case in aot_gpu.cases()}
    hopper = {
        (op, "pallas_gpu", target) for op in ("mlstm", "slstm") for target in ("h100", "h200")
    }
    assert found == hopper | {
        (op, "pallas_triton", target)
        for op in ("mlstm", "mlstm_front", "mlstm_back", "row_norm")
        for target in ("a100", "h100", "h200")
    }


def test_words_do_not_count_as_a_change_of_a_kernel():
    code = '"""Words."""\ndef f(x):\n    """More."""\n    return x + 1  # and more\n'
    assert aot_gpu._code(code) == aot_gpu._code("def f(x):\n    return x + 1\n")
    assert aot_gpu._code(code) != aot_gpu._code(code.replace("1", "2"))


def test_what_is_spilled_counts_once(tmp_path):
    """ptxas says it in a warning, too."""
    spills = "200 bytes spill stores, 228 bytes spill loads"
    said = [
        f"ptxas warning : Registers are spilled to local memory in function 'k', {spills}",
        f"ptxas         .     200 bytes stack frame, {spills}",
        "ptxas info    : Used 255 registers, used 2 barriers, 17 bytes smem",
    ]
    (tmp_path / "k_1.ptxas").write_text("\n".join(said))
    (tmp_path / "k_1.ptx").write_text("wgmma.mma_async.sync.aligned.m64n64k16 ;\n")
    launch = "gpu.launch_func async dynamic_shared_memory_size %c4096_i32"
    (tmp_path / "k_1.mlir-passes.log").write_text(launch)
    assert mosaic_kernels(tmp_path) == [Kernel("k", 255, 428, 4096, 1, 0)]
