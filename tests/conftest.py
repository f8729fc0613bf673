"""Shared by all tests: everything runs on the CPU, which counts as 8 devices; what names no mesh
runs on the first.
"""

import os
from importlib.metadata import version

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# Most of a test's time is XLA compiling a small program that then runs for milliseconds; without
# LLVM's optimisations that takes a third of the time. `XLA_FLAGS= make test` compiles as users do,
# and `make kernels` always does. Programs that tests start inherit this.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Four times as quick again; jaxlib 0.12 and libtpu end a process when they read it.
SIMPLER_LOOPS = "--xla_cpu_use_fusion_emitters=false"
ours = "XLA_FLAGS" not in os.environ
if ours:
    known = version("jaxlib").startswith("0.10.")
    os.environ["XLA_FLAGS"] = f"{COMPILE_QUICKLY} {SIMPLER_LOOPS if known else ''}"
# not by XLA_FLAGS, which programs that tests start would inherit
jax.config.update("jax_num_cpu_devices", 8)
jax.jit(lambda: 0)()  # XLA's client reads the flags now, libtpu when a test first needs it
if ours:
    os.environ["XLA_FLAGS"] = COMPILE_QUICKLY


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Every compiled program holds memory mappings, of which a process may have 65,530; thousands
    of tests in one process reach that.
    """
    yield
    jax.clear_caches()
