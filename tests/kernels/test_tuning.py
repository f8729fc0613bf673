"""Block sizes from `pallas_kernels/tuned/`: which entry a call gets."""

import importlib
import importlib.resources
import json

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import mlstm, tuning

TABLE = {
    "op/kernel": [
        {"shape": {"K": 64}, "blocks": {"chunk": 1}},
        {"shape": {"K": 64, "V": 128}, "blocks": {"chunk": 2}},
        {"shape": {"K": 128, "V": 128}, "blocks": {"chunk": 3}},
    ]
}


@pytest.fixture
def on_h200(monkeypatch):
    """A program lowered for an absent H200 whose table is TABLE."""
    monkeypatch.setattr(tuning, "_table", {"NVIDIA H200": TABLE}.__getitem__)
    absent = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=absent)):
        yield


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ({"K": 64, "V": 64}, {"chunk": 1}),
        ({"K": 64, "V": 128, "T": 7}, {"chunk": 2}),
        ({"K": 128, "V": 128}, {"chunk": 3}),
        ({"K": 128, "V": 64}, None),
    ],
)
def test_the_entry_that_says_most_of_what_fits(on_h200, shape, blocks):
    assert tuning.tuned("op/kernel", **shape) == blocks


def test_a_kernel_without_entries_leaves_it_to_the_heuristic(on_h200):
    assert tuning.tuned("op/other", K=64) is None


def test_no_table_for_this_cpu():
    assert tuning.tuned("op/kernel", K=64, V=64) is None


def test_a_file_is_named_for_the_device_kind():
    assert tuning.file_name("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3.json"
    assert tuning.file_name("TPU v5 lite") == "tpu_v5_lite.json"


@pytest.mark.parametrize(
    ("backend", "kind", "measured"),
    [
        ("pallas_tpu", "TPU v5 lite", 64),
        ("pallas_triton", "NVIDIA A100-SXM4-80GB", 128),
        pytest.param(
            "pallas_gpu",
            "NVIDIA H200",
            256,
            marks=pytest.mark.skipif(
                jax.__version_info__ < (0, 11), reason='"pallas_gpu" needs jax >= 0.11'
            ),
        ),
    ],
)
def test_the_mlstm_takes_the_chunk_that_was_measured(monkeypatch, backend, kind, measured):
    """What `python -m benchmarks.kernels --tune` writes; a chunk_size in the call goes before it,
    other types keep the heuristic.
    """
    seen = []
    module = importlib.import_module(f"pallas_kernels.mlstm.{backend}")
    # what cuts the gates into chunks; their size comes last
    name = "pack" if backend == "pallas_tpu" else "chunk_gates"
    cut = getattr(module, name)

    def spy(*arguments, **options):
        seen.append(arguments[-1])
        return cut(*arguments, **options)

    monkeypatch.setattr(module, name, spy)
    entry = {"shape": {"K": 128, "V": 128, "dtype": "bfloat16"}, "blocks": {"chunk_size": measured}}
    monkeypatch.setattr(tuning, "_table", {kind: {f"mlstm/{backend}": [entry]}}.__getitem__)

    def chunk(dtype="bfloat16", time=512, **options):
        x, gate = (
            jax.ShapeDtypeStruct((1, time, 1, 128), dtype),
            jax.ShapeDtypeStruct((1, time, 1), jnp.float32),
        )
        device = jax.sharding.AbstractDevice(kind, None, "tpu" if "TPU" in kind else "gpu")
        with jax.sharding.use_abstract_mesh(
            jax.sharding.AbstractMesh((), (), abstract_device=device)
        ):
            jax.eval_shape(
                lambda *inputs: mlstm(*inputs, backend=backend, **options), x, x, x, gate, gate
            )
        return seen.pop()

    assert chunk() == measured
    assert chunk(chunk_size=measured // 2) == measured // 2
    assert backend == "pallas_gpu" or chunk("float32") != measured  # that serves bfloat16 alone
    assert chunk(time=20) <= 64 or backend == "pallas_tpu"


def test_every_table_in_the_package_is_well_formed():
    folder = importlib.resources.files("pallas_kernels").joinpath("tuned")
    files = (
        [file for file in folder.iterdir() if file.name.endswith(".json")]
        if folder.is_dir()
        else []
    )
    for file in files:
        assert tuning.file_name(file.name.removesuffix(".json")) == file.name
        for kernel, entries in json.loads(file.read_text()).items():
            assert kernel.count("/") == 1
            assert all(entry.keys() == {"shape", "blocks"} for entry in entries)
