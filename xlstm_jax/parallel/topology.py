"""Devices that are not there: the chips of a pod, described so that a program can be compiled for
them on any machine.
"""

import importlib.resources
import os
import re
import signal
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from pallas_kernels.chips import CHIPS
from xlstm_jax import interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.installation import install

# Memory of one device in bytes, of the chips that programs can be compiled for.
HBM_BYTES = {
    chip.name: chip.memory
    for chip in CHIPS.values()
    if chip.name in ("v5e", "v5p", "v6e", "a100", "h100", "h200")
}
TPUS = ("v5e", "v5p", "v6e")
EXAMPLES = "v5p:4x4x4, v5e:16x16, v5e:16x16x2slices, h100:1x4x8 (slices x hosts x GPUs per host)"


def absent_devices(name: str) -> Sequence[jax.Device]:
    """The devices of a topology such as "v5p:4x4x4"; programs can be compiled for them and not run.

    Raises:
        UserError: no such topology, or what compiles for it is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+?)(?:x(\d+)slices)?", name)
    if not match or match[1] not in HBM_BYTES:
        raise UserError(
            f"topology {name!r} is not known; write for example {EXAMPLES}, with one of "
            f"{', '.join(HBM_BYTES)}"
        )
    chip, shape, slices = match[1], match[2], int(match[3] or 1)
    describe = _tpu if chip in TPUS else _gpu
    return describe(chip, shape, slices).devices


def _tpu(chip: str, shape: str, slices: int) -> topologies.TopologyDescription:
    # No question to a metadata server, and no lock that only one process may hold.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{shape}", num_slices=slices
        )
    # libtpu raises several types, with the shapes that it knows in the text
    except Exception as error:
        raise UserError(
            f"TPU topology {chip}:{shape} can't be described: {error}. If libtpu is missing: "
            f"{install('tpu')}"
        ) from error
    finally:
        # libtpu's own handler takes SIGTERM for a crash and prints its stack
        interrupts.take_back(signal.SIGTERM)


def _gpu(chip: str, shape: str, slices: int) -> topologies.TopologyDescription:
    if slices != 1 or shape.count("x") != 2:
        raise UserError(
            f"GPU topology {chip}:{shape} must be slices x hosts x GPUs per host, for example "
            f"{chip}:1x4x8"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    target = (
        importlib.resources.files("xlstm_jax.parallel")
        .joinpath("gpu_targets", f"{chip}.pbtxt")
        .read_text()
    )
    try:
        return topologies.get_topology_desc(
            platform="cuda", topology_name=chip, topology=shape, target_config=target
        )
    except Exception as error:  # a jaxlib without CUDA says so in several ways
        raise UserError(
            f"programs for GPUs can't be compiled here: {error}. Needed is an environment with: "
            f"{install('cuda13')}"
        ) from error
