"""Model FLOPs per token and the share of the chip's peak that training reaches (MFU).

Counted is the model and not the implementation: each mixer says what its forward pass takes (the
mLSTM in its chunkwise form at chunk length 64), no recomputation, backward = 2 x forward. Matrix
products, convolutions and cells count; norms, skips and the embedding look-up do not; the
vocabulary projection does. A multiply-add is two FLOPs.
"""

from pallas_kernels.chips import chip_of
from xlstm_jax.models.config import ModelConfig


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None for a chip that is not in the table, a CPU for
    example.
    """
    chip = chip_of(device_kind)
    return chip and chip.flops


def training_flops_per_token(config: ModelConfig, context_length: int) -> float:
    """Of the forward and the backward pass, for one token of a sample of `context_length`."""
    forward = 2 * config.dim * config.vocab_size
    for name in (name for block in config.layout for name in block):
        mixer, section = config.of(name)
        forward += mixer.flops(section, config.dim, context_length)
    return 3 * forward
