"""Counts of parameters."""

import math
from typing import Any

import jax


def count_parameters(params: Any) -> int:
    """The number of entries in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def parameter_table(params: Any) -> str:
    """One line per leaf, name, shape, number of entries, and the total in the last line."""
    named = {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    rows = [
        (name, " ".join(map(str, leaf.shape)), math.prod(leaf.shape))
        for name, leaf in named.items()
    ]
    rows.append(("total", "", count_parameters(params)))
    wide, shape_wide = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(
        f"{name:{wide}}  {shape:{shape_wide}}  {count:>15,}" for name, shape, count in rows
    )
