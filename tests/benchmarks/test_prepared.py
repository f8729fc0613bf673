"""Programs that are compiled on one machine and run on another: here both are this one."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import on_a_gpu, prepared
from benchmarks.gpu_models import file_of
from xlstm_jax.errors import UserError


@pytest.fixture
def file(tmp_path):
    """Of a step: a state that is given up, a batch, and what comes out."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(*size, dtype="float32"):
        return jax.ShapeDtypeStruct(size, dtype, sharding=device)

    def step(state, batch, unused):
        return {"w": state["w"] + batch.sum()}, {"loss": state["w"].mean()}

    path = tmp_path / "folder" / "step.program"
    arguments = ({"w": shape(2, 3)}, shape(4, dtype="int32"), shape(7))
    prepared.prepare(path, step, arguments, donated=1, facts={"tokens": 4})
    return path


def test_a_program_is_run_from_its_file(file):
    loaded = prepared.load(file)
    assert loaded.program.facts == {"tokens": 4}
    assert loaded.program.results == ["[0]['w']", "[1]['loss']"]
    kinds = {"[0]['w']": "ones", "[1]": "10", "[2]": "zeros"}
    given, rest = loaded.drawn(lambda leaf: kinds[leaf.path])
    batch = np.asarray(rest[0])
    assert batch.dtype == np.int32 and batch.min() >= 0 and batch.max() < 10
    w, loss = loaded.run(given, rest)
    np.testing.assert_array_equal(w, np.full((2, 3), 1 + batch.sum()))
    assert loss == 1 and given[0].is_deleted()


def test_the_same_arrays_are_drawn_each_time(file):
    draw = prepared.load(file).drawn
    first, again = (draw(lambda leaf: "zeros" if "1" in leaf.path else "normal") for _ in range(2))
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)
    assert jnp.std(first[0][0]) > 0


def test_a_file_of_another_jax_is_refused_and_none_is_named(file, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.9.9")
    with pytest.raises(UserError, match=r"compiled by jax .*, and this is 0\.9\.9; prepare it"):
        prepared.load(file)
    with pytest.raises(UserError, match="there is no .*absent; .* --prepare. writes it"):
        prepared.load(file.with_name("absent"))


def test_files_are_named_after_what_they_hold():
    assert file_of("step 125m [1:0]") == "step_125m_1_0.program"
    assert file_of("7b prefill, T 8192") == "7b_prefill_t_8192.program"


def test_what_prepare_refuses(tmp_path):
    """Nothing is compiled and nothing is replaced."""
    (tmp_path / "step_125m_1_0.program").touch()
    with pytest.raises(UserError, match="has programs already, such as step_125m_1_0.program"):
        on_a_gpu.prepare("h100:1x1x1", str(tmp_path), ["inference"], tiny=True)
    with pytest.raises(UserError, match="--prepare needs --output"):
        on_a_gpu.prepare("h100:1x1x1", None, ["inference"], tiny=True)


@pytest.mark.slow
def test_the_driver_runs_what_was_prepared(tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "benchmarks.on_a_gpu", "--tiny", *flags]
        return subprocess.run(
            command, cwd=on_a_gpu.ROOT, capture_output=True, text=True, check=True
        ).stdout

    folder, stages = tmp_path / "programs", "--stages=step,inference,curves:kernels"
    said = run("--prepare=h100:1x1x1", f"--output={folder}", stages)
    assert len(re.findall("prepared", said)) == 3
    said = run(f"--prepared={folder}", stages, "--jobs=1", f"--output={tmp_path / 'results'}")
    assert "finished: step:125m-1_0, inference:decode, inference:prefill, curves:kernels" in said
    assert said.count("prepared True") == 2  # what decodes is compiled on the device
