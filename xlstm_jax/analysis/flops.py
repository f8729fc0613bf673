"""Model FLOPs per token and the share of the chip's peak that training reaches (MFU).

Counted is the model and not the implementation: model and mixers say what their forward pass takes
(the mLSTM in its chunkwise form at chunk length 64), no recomputation, backward = 2 x forward.
Matrix products, convolutions and cells count; norms, skips and the input (the embedding look-up)
do not; the head (the vocabulary projection) does. A multiply-add is two FLOPs.
"""

from collections.abc import Sequence

from flax import linen as nn

from pallas_kernels.chips import chip_of
from xlstm_jax.errors import UserError
from xlstm_jax.models import mixers

# Names of sets of countings; of each set a mixer takes the first that it has (`Mixer.countings`).
COUNTINGS = {
    "model": (),  # of MFU: the mLSTM in chunks of 64, attention over the visible half
    # arXiv 2510.02228: its training FLOPs to the last printed digit
    "published": ("tfla", "distill_scaling", "activations"),
    # arXiv 2405.04517, perplexity against training FLOPs in two modes
    "parallel": ("parallel", "full"),
    "recurrent": ("recurrent", "full"),
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None for a chip that is not in the table, a CPU for
    example.
    """
    chip = chip_of(device_kind)
    return chip and chip.flops


def counting_of(text: str) -> tuple[str, ...]:
    """The countings of a set's name in `COUNTINGS`, or of their own names with commas between.

    Raises:
        UserError: no mixer counts so.
    """
    if text in COUNTINGS:
        return COUNTINGS[text]
    given = tuple(text.split(","))
    if unknown := [name for name in given if name not in mixers.countings()]:
        raise UserError(
            f"{unknown[0]!r} is no way to count FLOPs; there are {', '.join(COUNTINGS)}, or some "
            f"of {', '.join(mixers.countings())} with commas between"
        )
    return given


def training_flops_per_token(
    model: nn.Module, context_length: int, counting: Sequence[str] = ()
) -> float:
    """Of the forward and the backward pass, for one token of a sample of `context_length`.

    Args:
        model: of a task; its `flops(context_length, counting)` are those of the forward pass.
        counting: of `counting_of`; each mixer counts by the first that it has.
    """
    # a task's own model may have but the one counting
    return 3 * (model.flops(context_length, counting) if counting else model.flops(context_length))
