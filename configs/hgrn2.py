"""HGRN2 on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (tables 1 and 7): RMS norms,
heads of 128 channels, SwiGLU.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b      162.2M    0.003    not in the paper's tables
    350m-15b      411.4M    0.001    2.662 (paper: perplexity 14.32, table 1)
    760m-15b      834.2M    0.0009   not in the paper's tables
    1.3b-15b    1,439.4M    0.0009   not in the paper's tables
    2.7b-15b    2,795.4M    0.0008   not in the paper's tables

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch. At 2.7b the paper's table 7 prints the
dimensions of 1.3b, but the parameters of 32 blocks of D 2560. The default variant is 350m-15b.

    python train.py --config=configs/hgrn2.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.SIZES_OF_15B, "hgrn2+mlp")
    config.model.norm = "rms"
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    config.model.mlp.round_to = 256
    return config
