"""What every backend of `mlstm_front` takes and gives."""

from typing import NamedTuple

from jaxtyping import Array, Float

Inner = Float[Array, "B T I"]  # I: channels inside the block


class Call(NamedTuple):
    """The arrays as they were given."""

    c: Inner
    u: Inner
    query: Float[Array, "N i i"]
    key: Float[Array, "N i i"]
    value: Float[Array, "N i i"]
    gate_kernel: Float[Array, "3*I G"]
    gate_bias: Float[Array, " G"]


class Front(NamedTuple):
    """q and k, block-diagonal maps of c; v, of u; gates, a map of q, k and v in the type of sums
    (float32, float64 where an input is).
    """

    q: Inner
    k: Inner
    v: Inner
    gates: Float[Array, "B T G"]
