"""Gated linear attention on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): RMS
norms, 4 heads with keys of D/2, forget gates through 16 channels, SwiGLU of 2816.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      412.0M      0.001 2.782 (paper: perplexity 16.15, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

    python train.py --config=configs/gla.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "gla+mlp")
    config.model.norm = "rms"
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    config.model.mlp.round_to = 256
    return config
