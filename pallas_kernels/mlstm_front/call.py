"""What every backend of `mlstm_front` takes and gives."""

from typing import NamedTuple

from jaxtyping import Array, Float

from pallas_kernels.mlstm_front.places import Places, places_of
from pallas_kernels.typing import LastSegment, SegmentIds

Inner = Float[Array, "B T I"]  # I: channels inside the block


class Call(NamedTuple):
    """The arrays as they were given. Without a window all is zero before the first token."""

    u: Inner
    window: Float[Array, "B W-1 I"] | None
    conv_kernel: Float[Array, "W I"]
    conv_bias: Float[Array, " I"]
    query: Float[Array, "N i i"]
    key: Float[Array, "N i i"]
    value: Float[Array, "N i i"]
    gate_kernel: Float[Array, "3*I G"]
    gate_bias: Float[Array, " G"]
    segment_ids: SegmentIds | None
    previous_segment: LastSegment | None

    def places(self) -> Places:
        """Where the neighbours of all tokens are."""
        batch, time, _ = self.u.shape
        return places_of(
            batch,
            time,
            self.conv_kernel.shape[0],
            self.segment_ids,
            self.previous_segment,
            window=self.window is not None,
        )

    def floats(self) -> tuple[Array, ...]:
        """The arrays of numbers among those that were given."""
        return tuple(x for x in self[:-2] if x is not None)


class Front(NamedTuple):
    """c = SiLU(conv(u)); q and k, block-diagonal maps of c; v, of u; gates, a map of q, k and v in
    the type of sums (float32, float64 where an input is).
    """

    c: Inner
    q: Inner
    k: Inner
    v: Inner
    gates: Float[Array, "B T G"]
