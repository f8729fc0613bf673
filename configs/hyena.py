"""Hyena on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): layer norms, a GELU
layer of 4 D, biases everywhere, no positions; order 3.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      434.3M      0.001  2.867 (paper: perplexity 17.59, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

The paper prints 435M and says nothing else of this model. 24 blocks of D 1024 have 407.4M with
order 2; with order 3, the other one that has been published (arXiv 2302.10866, table 4.3), a block
has one kernel of D x D more. The public code also learns the table of lags that its filters read,
2,048 x 5 numbers per block with two waves, which makes 434.6M; here lags are computed and have no
last one.

    python train.py --config=configs/hyena.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "hyena+mlp")
    config.model.norm_bias = True
    config.model.hyena.order = 3
    config.model.hyena.bias = True
    config.model.mlp.gated = False
    config.model.mlp.factor = 4.0
    config.model.mlp.bias = True
    return config
