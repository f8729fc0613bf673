"""H3 on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): layer norms, a GELU layer
of 4 D, biases everywhere, no positions; 64 taps and 32 complex numbers per channel.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      410.1M      0.001  2.903 (paper: perplexity 18.23, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

The paper prints 420M and says nothing else of this model. This is the published one of 24 blocks of
D 1024 (arXiv 2212.14052), with an embedding and a vocabulary projection of their own as in the
other models. The 9.9M that are missing would be two fifths of another D x D kernel in each block;
with three times the taps and the numbers that a channel remembers it has 419.6M, but such a model
has not been published.

    python train.py --config=configs/h3.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "h3+mlp")
    config.model.norm_bias = True
    config.model.h3.bias = True
    config.model.mlp.gated = False
    config.model.mlp.factor = 4.0
    config.model.mlp.bias = True
    return config
