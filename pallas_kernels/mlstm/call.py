"""What every backend of `mlstm` takes: a call's arrays and its options."""

from typing import NamedTuple

from pallas_kernels.typing import Gates, Keys, MLSTMState, TokenFlags, Values


class Call(NamedTuple):
    """q as it was given; neutral numbers at padding; log gates and state in float32 or float64.

    state is None where there is none yet, starts None where no token starts a document.
    """

    q: Keys
    k: Keys
    v: Values
    log_i: Gates
    log_f: Gates
    state: MLSTMState | None
    starts: TokenFlags | None


class Options(NamedTuple):
    """normalise: whether the input gate is exponential; chunk_size: None for the backend's own."""

    normalise: bool
    chunk_size: int | None
    eps: float
