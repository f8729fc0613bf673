"""Model FLOPs per token and the share of the chip's peak that training reaches (MFU).

Counted is the model and not the implementation: the mLSTM in its chunkwise form at chunk length 64
(xLSTM 7B, arXiv 2503.13427, appendix D, every elementary function one FLOP), no recomputation,
backward = 2 x forward. Matrix products, convolutions and cells count; norms, skips and the
embedding look-up do not; the vocabulary projection does. A multiply-add is two FLOPs.
"""

from pallas_kernels.chips import chip_of
from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import inner_dim, large_ffn_dim, qk_dim, slstm_ffn_dim

CHUNK_LENGTH = 64


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None for a chip that is not in the table, a CPU for
    example.
    """
    chip = chip_of(device_kind)
    return chip and chip.flops


def mlstm_cell_flops(qk_dim: int, value_dim: int, chunk_length: int = CHUNK_LENGTH) -> float:
    """Forward FLOPs of one head over one chunk; `qk_dim`, `value_dim` are per head."""
    k, v, length = qk_dim, value_dim, chunk_length
    triangle = length * (length + 1) / 2
    between_gates = triangle + 2 * length + 5 + 5 * length
    between_state = 2 * k * v + 4 * length * k * v + 3 * length * k + 2 * k + 4 * length * k
    within_gates = triangle + 6 * length**2 + 2 * length
    within_products = 2 * length**2 * (1 + k) + 2 * length**2 * v + 2 * length**2
    combination = 2 * length + length * (5 + 2 * v)
    return between_gates + between_state + within_gates + within_products + combination


def slstm_cell_flops(dim: int, num_heads: int) -> float:
    """Forward FLOPs of one token over all heads: the recurrent product of four gates, and 24
    elementwise ones per channel.

    Per channel: 8 add recurrence and bias to the gates, 3 make the stabiliser, 4 the two
    exponential gates, 2 tanh and sigmoid, 5 the new c and n, 2 the output.
    """
    head_dim = dim // num_heads
    return 2 * 4 * dim * head_dim + 24 * dim


def block_flops(config: ModelConfig, kind: str) -> float:
    """Forward FLOPs of one block per token; kind as in `ModelConfig.block_kinds`."""
    dim, heads = config.dim, config.num_heads
    if kind == "slstm":
        conv = 2 * config.conv_width * dim
        gates = 2 * 4 * dim * (dim // heads)
        return conv + gates + slstm_cell_flops(dim, heads) + 6 * dim * slstm_ffn_dim(config)
    if kind == "mlstm":
        inner = inner_dim(config)
        conv = 2 * config.conv_width * inner
        query_key_value = 3 * 2 * inner * config.qkv_block_size
        gates = 2 * 3 * inner * 2 * heads
        cell = heads * mlstm_cell_flops(inner // heads, inner // heads) / CHUNK_LENGTH
        return 2 * dim * 2 * inner + conv + query_key_value + gates + cell + 2 * inner * dim
    keys = qk_dim(config)
    projections = 2 * dim * (2 * keys + dim + 2 * heads) + 2 * 2 * dim * dim
    cell = heads * mlstm_cell_flops(keys // heads, dim // heads) / CHUNK_LENGTH
    return projections + cell + 6 * dim * large_ffn_dim(config)


def training_flops_per_token(config: ModelConfig) -> float:
    """Forward and backward."""
    forward = (
        sum(block_flops(config, kind) for kind in config.block_kinds)
        + 2 * config.dim * config.vocab_size
    )
    return 3 * forward
