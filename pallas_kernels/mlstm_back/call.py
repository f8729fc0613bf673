"""What every backend of `mlstm_back` takes."""

from typing import NamedTuple

from jaxtyping import Array, Float

from pallas_kernels.typing import Values

Inner = Float[Array, "B T I"]  # I = H V, the channels of all heads


class Call(NamedTuple):
    """The arrays as they were given; c and skip are both None or neither."""

    h: Values
    scale: Float[Array, " I"]
    gate: Inner
    c: Inner | None
    skip: Float[Array, " I"] | None


class Options(NamedTuple):
    """What is added to the heads' variance, whether their mean is subtracted first, and what the
    gate goes through: "silu" or "sigmoid".
    """

    eps: float
    center: bool
    activation: str
