"""The only place in xlstm_jax that knows about devices: the mesh, the logical-axis rules, the
compute dtype.
"""

from xlstm_jax.parallel.axes import LOGICAL_AXIS_RULES, constrain, gathered, num_shards
from xlstm_jax.parallel.devices import (
    compute_dtype,
    has_room,
    num_devices,
    only_device,
    platform,
    rows_in_place,
)
from xlstm_jax.parallel.functions import mlstm, on_own_part, slstm
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
    "everywhere",
    "filled_rows",
    "gathered",
    "has_room",
    "is_first_process",
    "make_mesh",
    "mesh_in_context",
    "mlstm",
    "num_devices",
    "num_shards",
    "only_device",
    "on_own_part",
    "own_part",
    "parameter_shardings",
    "platform",
    "put_batch",
    "replicated",
    "rows_in_place",
    "slstm",
    "start_processes",
]
