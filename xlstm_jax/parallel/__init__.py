"""The only place in xlstm_jax that knows about devices: the mesh, the logical-axis rules, the compute dtype."""

from xlstm_jax.parallel.devices import compute_dtype, platform
from xlstm_jax.parallel.mesh import LOGICAL_AXIS_RULES, make_mesh

__all__ = ["LOGICAL_AXIS_RULES", "compute_dtype", "make_mesh", "platform"]
