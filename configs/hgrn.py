"""HGRN on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): a gated recurrence per
channel, then SwiGLU; RMS norms. The paper prints 411M parameters and no configuration: this is
Llama's stack with a hidden size that is a multiple of 256, the default of the public code.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      411.4M      0.001  2.867 (paper: perplexity 17.59, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

    python train.py --config=configs/hgrn.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "hgrn+mlp")
    config.model.norm = "rms"
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    config.model.mlp.round_to = 256
    return config
