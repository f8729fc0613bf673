"""GPT-3 on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (table 1): layer norms with
biases, learned positions, a GELU layer of 4 D, the embedding as vocabulary projection.

    variant   parameters  peak rate  expected held-out loss, nats per GPT-2 token
    350m-15b      355.9M      0.001 2.657 (paper: perplexity 14.26, table 1)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch.

    python train.py --config=configs/gpt3.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.ONLY_350M, "attention+mlp")
    config.model.norm_bias = True
    config.model.positions = "learned"
    config.model.max_positions = 2048
    config.model.tie_embeddings = True
    config.model.attention.num_heads = 16
    config.model.attention.theta = None
    config.model.attention.bias = True
    config.model.mlp.activation = "gelu_tanh"
    config.model.mlp.gated = False
    config.model.mlp.factor = 4.0
    config.model.mlp.bias = True
    return config
