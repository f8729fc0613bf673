"""Recurrences without products of matrices: h_t = a_t h_{t-1} + b_t, and RWKV-4's decayed
average.
"""

from pallas_kernels.elementwise_scan.api import elementwise_recurrence, elementwise_scan
from pallas_kernels.elementwise_scan.decayed_average import AverageState, decayed_average

__all__ = ["AverageState", "decayed_average", "elementwise_recurrence", "elementwise_scan"]
