"""The real training step is compiled for TPUs that are not here, by their own compiler; what
doesn't fit is a row and not a crash.
"""

import dataclasses
import json
import pathlib
import types

import jax
import pytest

import train as train_command
from xlstm_jax.analysis.compiled.program import read_program
from xlstm_jax.analysis.compiled.step_model import model_of
from xlstm_jax.config import MeshConfig, load
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.topology import absent_devices
from xlstm_jax.training import compiling
from xlstm_jax.training.aot import (
    StepReport,
    check_new_file,
    compile_step,
    write_details,
)
from xlstm_jax.training.compiling import needed_bytes

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra dev")

PROGRAMS = pathlib.Path(__file__).parents[1] / "analysis" / "programs"
# The cells' kernels, in one block each.
SMALL = {
    "model.num_blocks": 1,
    "model.dim": 256,
    "model.blocks": "mlstm",
    "model.mlstm.num_heads": 2,
    "model.vocab_size": 512,
    "model.remat": "block",
    "data.context_length": 256,
    "data.batch_size": 16,
}


def config(overrides=None):
    return load("configs/xlstm_125m.py:1_0-15b", SMALL | (overrides or {}))


@pytest.mark.slow
def test_a_step_for_a_small_slice_says_what_it_takes():
    both = {"model.num_blocks": 2, "model.blocks": "mlstm,slstm+mlp", "model.slstm.num_heads": 2}
    report = compile_step(config(both), "v5e:2x2")
    assert report.fits and report.devices == 4
    assert 0 < report.arguments < report.peak < report.memory
    assert report.kernels["pallas_tpu"] >= 4  # both cells, forward and back
    assert report.collectives["all-reduce"] > 0
    assert any("fits" in line for line in report.lines())
    parts = report.model.parts
    assert {"products", "mlstm", "slstm", "norms", "loss", "optimizer"} <= parts.keys()
    pallas = [kernel for kernel, _ in report.model.kernels if kernel.is_pallas]
    assert sum(kernel.times for kernel in pallas) == report.kernels["pallas_tpu"]
    # the products alone; every one of the model's is there, and the backward pass has two for each
    assert report.model.whole.flops * report.devices > 0.8 * report.flops
    assert all(len(line) <= 100 for line in report.lines())
    kept = report.facts()["model"]["parts"]
    assert kept["products"]["milliseconds"] == parts["products"].milliseconds


@pytest.mark.slow
def test_with_64_bit_types_it_is_the_same_step():
    """Of a chip that has no float64: the same kernels, and memory of the same size."""
    expected = compile_step(config(), "v5e:2x2")
    with jax.enable_x64(True):
        report = compile_step(config(), "v5e:2x2")
    assert report.fits and report.kernels == expected.kernels
    assert report.arguments == expected.arguments
    assert report.peak == pytest.approx(expected.peak, rel=0.01)


def test_details_are_written_to_a_new_file_or_it_is_said_why_not(tmp_path):
    program = read_program((PROGRAMS / "h100_125m.hlo").read_text())
    model = model_of(program, "NVIDIA H100")
    known = {"topology": "h100:1x1x1", "devices": 1, "memory": 80e9, "flops": 1e15}
    report = StepReport(**known, fits=True, seconds=1.0, accumulation_steps=1, model=model)
    file = str(tmp_path / "new" / "kernels.json")
    written = json.loads(pathlib.Path(write_details(report, file)).read_text())
    assert written["model"]["kernels"][0]["source"][0].startswith("xlstm_jax/")
    assert written["devices"] == 1 and len(written["model"]["kernels"]) == len(model.kernels)
    with pytest.raises(UserError, match=r"kernels.json' is there already"):
        check_new_file("--aot-details", file)
    with pytest.raises(UserError, match="no kernels are known: the step does not fit"):
        write_details(dataclasses.replace(report, fits=False, model=None), file + "2")


@pytest.mark.slow
def test_two_slices_have_twice_the_devices():
    report = compile_step(config(), "v5e:2x2x2slices")
    assert report.fits and report.devices == 8


def test_slices_are_apart_along_the_data_axis_alone():
    devices = absent_devices("v5e:2x2x2slices")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices)
    assert [{device.slice_index for device in half.flat} for half in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="2 slices divide none of the mesh's axes"):
        make_mesh(
            MeshConfig(data=1, fsdp=1, tensor=1, sequence=9),
            absent_devices("v5e:2x2x2slices") + devices[:1],
        )


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_what_it_needs(tmp_path, capsys):
    wide = {
        "data.batch_size": 4096,
        "data.context_length": 8192,
        "model.dim": 1024,
        "model.remat": "none",
    }
    more = [f"--config.{key}={value}" for key, value in (SMALL | wide).items()]
    argv = [
        "train.py",
        "--config=configs/xlstm_125m.py:1_0-15b",
        "--aot=v5e:2x2",
        f"--workdir={tmp_path}",
        *more,
    ]
    assert train_command.main(argv) == 0
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed and "needed: " in printed
    written = json.loads((tmp_path / "xlstm_125m_1_0-15b_v5e_2x2.json").read_text())
    assert not written["fits"] and written["needed"] > written["memory"]


@pytest.mark.parametrize("name", ["v5e", "v7x:2x2", "v5e:2", "h100:8", "v5e:2x2xslices"])
def test_a_topology_that_does_not_exist_is_named(name):
    with pytest.raises(
        UserError,
        match=r"topology .*(is not known; write for example|must be slices x hosts x GPUs)",
    ):
        absent_devices(name)


def test_an_absent_gpu_has_the_flags_of_training_and_a_present_device_those_of_its_process(
    monkeypatch,
):
    """Else the step that "auto" compiled would not be found in the cache when it is called."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    gpu = types.SimpleNamespace(platform="cuda")
    assert compiling._options(gpu)["xla_gpu_enable_triton_gemm"] is False
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    assert compiling._options(gpu) is None
    assert compiling._options(types.SimpleNamespace(platform="tpu")) is None


def test_the_compilers_numbers_are_read():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 14.75G."
    )
    assert needed_bytes(message) == 30.5 * 2**30
    message = (
        "Ran out of memory on HBM, the total memory required for HLO temporaries (540.97G) exceeds "
        "available HBM (15.75G)."
    )
    assert needed_bytes(message) == 540.97 * 2**30
    assert needed_bytes("INVALID_ARGUMENT: something else") is None


def test_kernels_that_only_a_gpu_can_make_are_not_vouched_for():
    """Attention by cuDNN: the program holds its calls, and the GPU that loads it makes the rest."""
    known = {"topology": "h100:1x1x8", "devices": 8, "fits": True, "memory": 80e9, "flops": 1e15}
    report = StepReport(
        **known,
        seconds=1.0,
        accumulation_steps=1,
        arguments=1,
        temporaries=1,
        peak=2,
        collectives={},
        kernels={"cudnn": 72},
    )
    printed = "\n".join(report.lines())
    assert "kernels per device and step: cudnn x 72\n  cudnn's are made by the GPU that" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())
    without = dataclasses.replace(report, kernels={"pallas_gpu": 3})
    assert not any("made by the GPU" in line for line in without.lines())


def test_a_small_step_has_sizes_and_what_can_not_be_read_has_a_reason():
    known = {"topology": "v5e:2x2", "devices": 4, "fits": True, "memory": 17.2e9, "flops": 1e9}
    sizes = {"arguments": 53_100, "temporaries": 1_730_000, "peak": None}
    report = StepReport(
        **known,
        **sizes,
        seconds=1.0,
        accumulation_steps=1,
        collectives={"all-reduce": 404},
        kernels={},
    )
    printed = "\n".join(report.lines())
    assert "arguments 53.1 kB, temporaries 1.73 MB, peak unknown" in printed
    assert "collectives per device and step: all-reduce 404 bytes" in printed
    unread = dataclasses.replace(report, collectives=None, unread="jaxlib 0.10.2 can't read it")
    assert unread.lines()[2:4] == [
        "collectives and kernels: unknown",
        "  jaxlib 0.10.2 can't read it",
    ]
