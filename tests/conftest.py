"""Shared by all tests: everything runs on the CPU, which counts as 8 devices; what names no mesh
runs on the first.
"""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

# not by XLA_FLAGS, which programs that tests start would inherit
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Every compiled program holds memory mappings, of which a process may have 65,530; thousands
    of tests in one process reach that.
    """
    yield
    jax.clear_caches()
