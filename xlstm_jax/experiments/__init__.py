"""Grids of training runs, their rows of results, and reports of these.

A grid is defined by the function `get_experiment` of a file in `configs/`; nothing here knows an
experiment, a task or a model by name.
"""
