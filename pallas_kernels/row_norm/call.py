"""What every backend of `row_norm` takes."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Call(NamedTuple):
    """The arrays."""

    x: Float[Array, "R D"]
    scale: Float[Array, " D"]


class Options(NamedTuple):
    """What is added to the mean square, and whether the mean is subtracted first."""

    eps: float
    center: bool
