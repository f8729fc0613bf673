"""Model FLOPs per token and the share of the chip's peak that training reaches (MFU).

Counted is the model and not the implementation: each mixer says what its forward pass takes (the
mLSTM in its chunkwise form at chunk length 64), no recomputation, backward = 2 x forward. Matrix
products, convolutions and cells count; norms, skips and the embedding look-up do not; the
vocabulary projection does. A multiply-add is two FLOPs.
"""

from xlstm_jax.models.config import ModelConfig

# Dense bfloat16 FLOP/s of one device, by the beginning of jax's `device_kind`; the manufacturers'
# data sheets. The longest beginning wins. GPU numbers are those without sparsity.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # v5p names itself so
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
}
UNKNOWN_TPUS = ("TPU v4 lite", "TPU v4i")  # inference chips that share a beginning with a known one


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None for a chip that is not in the table, a CPU for
    example.
    """
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    if not known or device_kind.startswith(UNKNOWN_TPUS):
        return None
    return PEAK_FLOPS[max(known, key=len)]


def training_flops_per_token(config: ModelConfig, context_length: int) -> float:
    """Of the forward and the backward pass, for one token of a sample of `context_length`."""
    forward = 2 * config.dim * config.vocab_size
    for name in (name for block in config.layout for name in block):
        mixer, section = config.of(name)
        forward += mixer.flops(section, config.dim, context_length)
    return 3 * forward
