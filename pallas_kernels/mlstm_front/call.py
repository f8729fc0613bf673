"""What every backend of `mlstm_front` takes and gives."""

from typing import NamedTuple

from jaxtyping import Array, Float

from pallas_kernels.mlstm_front.places import Places

Inner = Float[Array, "B T I"]  # I: channels inside the block


class Call(NamedTuple):
    """The arrays as they were given, and where each token's neighbours are. Without a window all
    is zero before the first token.
    """

    u: Inner
    window: Float[Array, "B W-1 I"] | None
    conv_kernel: Float[Array, "W I"]
    conv_bias: Float[Array, " I"]
    query: Float[Array, "N i i"]
    key: Float[Array, "N i i"]
    value: Float[Array, "N i i"]
    gate_kernel: Float[Array, "3*I G"]
    gate_bias: Float[Array, " G"]
    places: Places


class Front(NamedTuple):
    """c = SiLU(conv(u)); q and k, block-diagonal maps of c; v, of u; gates, a map of q, k and v in
    the type of sums (float32, float64 where an input is).
    """

    c: Inner
    q: Inner
    k: Inner
    v: Inner
    gates: Float[Array, "B T G"]
