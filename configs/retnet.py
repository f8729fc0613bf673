"""RetNet on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): RMS norms, 4 heads
with keys of D and values of 2 D, SwiGLU of 5/3 D.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      430.6M      0.001 2.787 (paper: perplexity 16.23, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

The paper prints 431M and says nothing else of this model. With RetNet's values of 2 D, 24 blocks of
D 1024 then have a gated layer of 1,711 to 1,723 channels. Here it has 1,712: 5/3 D, the ratio of
RetNet's published model of 768 channels (1,280), up to a multiple of 16. Others fit as well: values
of D and a SwiGLU of 8/3 D up to a multiple of 16 have as many parameters but for the norms. The
defaults of flash-linear-attention, with a gated layer of 1,536, give 417.7M.

    python train.py --config=configs/retnet.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "retnet+mlp")
    config.model.norm = "rms"
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 5 / 3
    config.model.mlp.round_to = 16
    return config
