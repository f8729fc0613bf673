"""Sizes of TPUs that the kernels are cut to."""

LANES, SUBLANES = 128, 8  # of a vector register
# Bytes of VMEM that a kernel may ask for: what the smallest among v5e (128 MiB), v5p (64) and v6e
# (128) has, less what XLA takes itself.
VMEM_LIMIT = 56 * 2**20
