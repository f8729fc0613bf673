"""The C library's memory, where the CPU is the device.

XLA asks for the temporary arrays of a program anew in every call and frees them at its end. By
default glibc gives so large a piece back to the system at once, and the next step pays for the page
faults: of a step of two blocks of dim 64 and 128 x 40 tokens, 28 of 69 ms of CPU time with Llama
and 40 of 131 ms with xLSTM[0:1], which are gone where the memory is kept.
"""

import ctypes
import os
import pathlib
import sys
from collections.abc import Mapping

# of /usr/include/malloc.h: threads share one heap; nothing is mapped on its own; the heap's end is
# kept up to 2 GiB
OPTIONS = {"ARENA_MAX": (-8, 1), "MMAP_MAX_": (-4, 0), "TRIM_THRESHOLD_": (-1, 2**31 - 1)}
ACCELERATORS = ("/proc/driver/nvidia/version", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Keeps freed memory for the next step where nothing but the CPU computes; returns whether it
    does. To be called before jax is first used: its threads choose their heaps when they begin.

    For programs with little memory: the process's own stays at its peak, which grows as the heap
    gets holes (250 MB for a program with 66). Where the user has set one of glibc's own variables
    (MALLOC_ARENA_MAX and the like), and with another C library, nothing is changed.
    """
    if not _computes_on_cpu(environment) or any(
        f"MALLOC_{name}" in environment for name in OPTIONS
    ):
        return False
    if not sys.platform.startswith("linux") or not hasattr(
        ctypes.CDLL(None), "gnu_get_libc_version"
    ):
        return False
    return all([ctypes.CDLL(None).mallopt(*option) for option in OPTIONS.values()])


def _computes_on_cpu(environment: Mapping[str, str]) -> bool:
    """Without asking jax, which would start its threads."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    root = pathlib.Path("/")
    return not any(any(root.glob(pattern[1:])) for pattern in ACCELERATORS)
