"""What every backend of `slstm` takes: a call's arrays and its options."""

from typing import NamedTuple

from jaxtyping import Array, Float

from pallas_kernels.typing import SLSTMState, TokenFlags


class Call(NamedTuple):
    """x, R (the recurrent kernel) and bias as they were given; the state in float32 or float64.

    starts and padding are None where no segments are given.
    """

    x: Float[Array, "B T 4 H V"]
    R: Float[Array, "4 H V V"]
    bias: Float[Array, "4 H V"]
    state: SLSTMState
    starts: TokenFlags | None
    padding: TokenFlags | None


class Options(NamedTuple):
    """recurrent_gradient_clip: None leaves the gradients exact."""

    recurrent_gradient_clip: float | None
