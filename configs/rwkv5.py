"""RWKV-5 (x052) on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (tables 1 and 7): layer
norms with biases, heads of 64 channels, a channel mix of 4 D.

    variant     parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b        176.5M    0.003    not in the paper's tables
    350m-15b        455.7M    0.001    2.657 (paper: perplexity 14.25, table 1)
    760m-15b        947.8M    0.0009   not in the paper's tables
    1.3b-15b      1,616.0M    0.0009   not in the paper's tables
    2.7b-15b      3,194.7M    0.0008   not in the paper's tables

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch. At 2.7b the paper's table 7 prints the
dimensions of 1.3b, but the parameters of 32 blocks of D 2560. The default variant is 350m-15b.

    python train.py --config=configs/rwkv5.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.SIZES_OF_15B, "rwkv5+rwkv4_channel")
    config.model.norm_bias = True
    config.model.embedding_norm = True
    return config
