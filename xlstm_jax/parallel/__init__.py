"""The only place in xlstm_jax that knows about devices: the mesh, the logical-axis rules, the compute dtype."""

from xlstm_jax.parallel.devices import compute_dtype, num_devices, platform
from xlstm_jax.parallel.mesh import LOGICAL_AXIS_RULES, batch_sharding, make_mesh, replicated
from xlstm_jax.parallel.processes import is_first_process, own_part, put_batch, start_processes

__all__ = [
    "LOGICAL_AXIS_RULES",
    "batch_sharding",
    "compute_dtype",
    "is_first_process",
    "make_mesh",
    "num_devices",
    "own_part",
    "platform",
    "put_batch",
    "replicated",
    "start_processes",
]
