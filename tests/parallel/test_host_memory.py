"""On a CPU the C library keeps a step's temporary memory: the next step has no page faults."""

import os
import subprocess
import sys

import pytest

from xlstm_jax.parallel import host_memory
from xlstm_jax.parallel.host_memory import OPTIONS, keep_freed_memory

STEP = """
import resource
from xlstm_jax.parallel.host_memory import keep_freed_memory
assert keep_freed_memory()
import jax, jax.numpy as jnp

step = jax.jit(lambda x: jnp.flip(jnp.outer(x, x), 0).sum(1))
x = jnp.ones(3000)  # the outer product has 36 MB
faults = []
for _ in range(30):  # the heap may grow for some steps, until its holes are large enough
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_step_finds_the_memory_of_the_last_one():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", STEP],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    # without it every step has 36 MB of page faults
    assert int(found.stdout) * os.sysconf("SC_PAGE_SIZE") < 2**20


@pytest.mark.parametrize(
    ("environment", "accelerators"),
    [
        ({"JAX_PLATFORMS": "cuda,cpu"}, ()),
        ({"JAX_PLATFORMS": "tpu"}, ()),
        ({}, ("/proc/sel*",)),
        *[({"JAX_PLATFORMS": "cpu", f"MALLOC_{name}": "2"}, ()) for name in OPTIONS],
    ],
)
def test_nothing_is_changed_with_an_accelerator_or_against_the_user(
    monkeypatch, environment, accelerators
):
    monkeypatch.setattr(host_memory, "ACCELERATORS", accelerators)
    assert not keep_freed_memory(environment)
