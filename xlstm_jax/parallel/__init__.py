"""The only place in xlstm_jax that knows about devices: the mesh, the logical-axis rules, the
compute dtype. `parallel.kernels` has the kernels, each device with its own part.
"""

from xlstm_jax.parallel.axes import LOGICAL_AXIS_RULES, constrain, gathered, num_shards
from xlstm_jax.parallel.devices import (
    compute_dtype,
    device_memory,
    num_devices,
    platform,
)
from xlstm_jax.parallel.kernels import on_own_part
from xlstm_jax.parallel.mesh import (
    batch_sharding,
    check_length,
    filled_rows,
    make_mesh,
    mesh_in_context,
    replicated,
)
from xlstm_jax.parallel.processes import (
    check_same_everywhere,
    check_shared_folder,
    everywhere,
    is_first_process,
    of_rank,
    own_part,
    put_batch,
    start_processes,
)
from xlstm_jax.parallel.shardings import check_spread, parameter_shardings

__all__ = [
    "LOGICAL_AXIS_RULES",
    "batch_sharding",
    "check_length",
    "check_same_everywhere",
    "check_shared_folder",
    "check_spread",
    "compute_dtype",
    "constrain",
    "device_memory",
    "everywhere",
    "filled_rows",
    "gathered",
    "is_first_process",
    "make_mesh",
    "mesh_in_context",
    "num_devices",
    "num_shards",
    "of_rank",
    "on_own_part",
    "own_part",
    "parameter_shardings",
    "platform",
    "put_batch",
    "replicated",
    "start_processes",
]
