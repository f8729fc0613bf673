"""The xLSTM cells and what the models beside them are made of, as pure functions with their
states: `mlstm`, `mlstm_front`, `mlstm_back`, `slstm`, `attention`, `linear_attention`,
`elementwise_scan`, `row_norm`. Depends on jax and jaxtyping alone.
"""

from pallas_kernels.attention import AttentionState, attention, cache_room, rotary
from pallas_kernels.cpu_compiler import avoid_wrong_fusions
from pallas_kernels.elementwise_scan import (
    AverageState,
    decayed_average,
    elementwise_recurrence,
    elementwise_scan,
)
from pallas_kernels.linear_attention import LinearAttentionState, linear_attention
from pallas_kernels.mlstm import mlstm
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.mlstm_front import mlstm_front
from pallas_kernels.row_norm import row_norm
from pallas_kernels.slstm import slstm
from pallas_kernels.typing import MLSTMState, SLSTMState

avoid_wrong_fusions()

__all__ = [
    "AttentionState",
    "AverageState",
    "LinearAttentionState",
    "MLSTMState",
    "SLSTMState",
    "attention",
    "cache_room",
    "decayed_average",
    "elementwise_recurrence",
    "elementwise_scan",
    "linear_attention",
    "mlstm",
    "mlstm_back",
    "mlstm_front",
    "rotary",
    "row_norm",
    "slstm",
]
