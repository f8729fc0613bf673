"""The only place in xlstm_jax that knows about devices: the mesh, the logical-axis rules, the compute dtype."""

from xlstm_jax.parallel.devices import compute_dtype, platform
from xlstm_jax.parallel.mesh import LOGICAL_AXIS_RULES, batch_sharding, make_mesh, replicated

__all__ = ["LOGICAL_AXIS_RULES", "batch_sharding", "compute_dtype", "make_mesh", "platform", "replicated"]
