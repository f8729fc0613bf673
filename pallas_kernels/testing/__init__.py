"""What kernels are checked and timed with: cases, their inputs, and the cells as the paper prints
them in float64. For tests and benchmarks; the cells import nothing of it.
"""
