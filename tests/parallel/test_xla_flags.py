"""Flags for GPUs: ours are added to what the user has set, and only where a GPU may be used."""

import os
import subprocess
import sys

import pytest

from xlstm_jax.parallel import xla_flags
from xlstm_jax.parallel.xla_flags import TRAINING, WRITING, Flag, compiler_options, set_for_gpus

MERGED = "--xla_gpu_dot_merger_threshold_mb=256"
OF_TRAINING = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
OURS = f"--xla_disable_hlo_passes=dot-strength-reduction {MERGED}"


@pytest.fixture
def driver(monkeypatch, tmp_path):
    monkeypatch.setattr(xla_flags, "DRIVER", tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", OURS),
        ("--xla_dump_to=here", f"--xla_dump_to=here {OURS}"),
        ("--xla_disable_hlo_passes=", f"--xla_disable_hlo_passes= {MERGED}"),
        (f"--xla_disable_hlo_passes=a,b --xla_x=1 {MERGED}",) * 2,
    ],
)
def test_what_the_user_has_set_stays(driver, given, expected):
    environment = {"XLA_FLAGS": given}
    for _ in range(2):
        set_for_gpus(WRITING, environment)
        assert environment["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.93"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}),
    ],
)
def test_variables_under_both_names(driver, given, expected):
    environment = dict(given)
    set_for_gpus(TRAINING, environment)
    assert environment == expected | {"XLA_FLAGS": OF_TRAINING}


def test_what_compiles_without_the_device_is_given_the_same():
    level = {"xla_gpu_autotune_level": "0"}
    assert compiler_options(TRAINING, {}) == {"xla_gpu_enable_triton_gemm": False} | level
    assert compiler_options(TRAINING, {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true"}) == level


@pytest.mark.parametrize(
    ("platforms", "set_"), [("", True), ("cuda,cpu", True), ("cpu", False), ("tpu", False)]
)
def test_only_where_a_gpu_may_be_used(driver, platforms, set_):
    environment = {"JAX_PLATFORMS": platforms}
    set_for_gpus(WRITING, environment)
    assert (environment.get("XLA_FLAGS") == OURS) == set_


def test_without_a_driver_nothing_is_set(monkeypatch, tmp_path):
    monkeypatch.setattr(xla_flags, "DRIVER", tmp_path / "none")
    environment = {}
    set_for_gpus([*TRAINING, *WRITING], environment)
    assert environment == {}


def test_this_jaxlib_knows_every_flag_and_every_flag_has_a_reason(driver):
    """XLA ends the process of a flag that it does not know."""
    assert all(isinstance(flag, Flag) and len(flag.reason) > 20 for flag in TRAINING + WRITING)
    environment = {}
    set_for_gpus([*TRAINING, *WRITING], environment)
    program = "import jax; print(jax.jit(lambda: 1 + jax.numpy.ones(2))())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "[2. 2.]" in done.stdout, done.stderr
