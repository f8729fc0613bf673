"""Layer norm and root-mean-square norm of rows: y = (x - mean) / sqrt(variance + eps) * scale."""

from pallas_kernels.row_norm.api import row_norm

__all__ = ["row_norm"]
