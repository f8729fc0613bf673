"""Shared by all tests: everything runs on the CPU, which counts as 8 devices; what names no mesh
runs on the first.
"""

import gc
import os
import pathlib
from importlib.metadata import version

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' runs and programs compile the same small steps over and over: those of a tenth of a
# second are kept in the compilation cache, too, and not only those of a second.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
from jax.experimental import topologies

# Most of a test's time is XLA compiling a small program that then runs for milliseconds; without
# LLVM's optimisations that takes a third of the time. `XLA_FLAGS= make test` compiles as users do,
# and `make kernels` always does. Programs that tests start, and the processes of pytest-xdist,
# inherit this.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Three times as quick again; jaxlib 0.12 and libtpu end a process when they read it.
SIMPLER_LOOPS = "--xla_cpu_use_fusion_emitters=false"
if "XLA_FLAGS" not in os.environ:
    known = version("jaxlib").startswith("0.10.")
    os.environ["XLA_FLAGS"] = f"{COMPILE_QUICKLY} {SIMPLER_LOOPS}" if known else COMPILE_QUICKLY
# not by XLA_FLAGS, which programs that tests start would inherit
jax.config.update("jax_num_cpu_devices", 8)
jax.jit(lambda: 0)()  # XLA's client reads the flags now

get_topology_desc = topologies.get_topology_desc


def without_simpler_loops(*arguments, **named):
    """`get_topology_desc`, which loads libtpu; from then on that reads the flags at any time."""
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").replace(SIMPLER_LOOPS, "")
    return get_topology_desc(*arguments, **named)


topologies.get_topology_desc = without_simpler_loops

# Tracing makes millions of small objects that live long: Python's search for circles among them
# takes 6 % of the time with its usual thresholds of 700 (2,000 from Python 3.12), 10 and 10.
gc.set_threshold(50_000, 20, 50)


def holds_much() -> bool:
    """Whether this process has more than 20,000 memory mappings, or 3 GB in memory; true where the
    system does not say.
    """
    try:
        mappings = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
        resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return True
    return mappings > 20_000 or resident * os.sysconf("SC_PAGE_SIZE") > 3e9


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Every compiled program holds memory, and mappings, of which a process may have 65,530;
    thousands of tests in one process reach that. What stays is not traced again by the next file.
    """
    yield
    if holds_much():
        jax.clear_caches()
        gc.collect()
