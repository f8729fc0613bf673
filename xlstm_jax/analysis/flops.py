"""Model FLOPs per token and the share of the chip's peak that training reaches (MFU).

Counted is the model and not the implementation: model and mixers say what their forward pass takes
(the mLSTM in its chunkwise form at chunk length 64), no recomputation, backward = 2 x forward.
Matrix products, convolutions and cells count; norms, skips and the input (the embedding look-up)
do not; the head (the vocabulary projection) does. A multiply-add is two FLOPs.
"""

from flax import linen as nn

from pallas_kernels.chips import chip_of


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None for a chip that is not in the table, a CPU for
    example.
    """
    chip = chip_of(device_kind)
    return chip and chip.flops


def training_flops_per_token(model: nn.Module, context_length: int) -> float:
    """Of the forward and the backward pass, for one token of a sample of `context_length`.

    Args:
        model: of a task; its `flops(context_length)` are those of the forward pass.
    """
    return 3 * model.flops(context_length)
