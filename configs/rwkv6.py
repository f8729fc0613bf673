"""RWKV-6 (x060) on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (tables 1 and 7): layer
norms with biases, heads of 64 channels, a channel mix of 3.5 D.

    variant     parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b        173.6M    0.003    not in the paper's tables
    350m-15b        441.6M    0.001    2.710 (paper: perplexity 15.03, table 1)
    760m-15b        907.7M    0.0009   not in the paper's tables
    1.3b-15b      1,537.5M    0.0009   not in the paper's tables
    2.7b-15b      3,021.9M    0.0008   not in the paper's tables

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch. At 2.7b the paper's table 7 prints the
dimensions of 1.3b, but the parameters of 32 blocks of D 2560. The default variant is 350m-15b.
With the peak rate 0.0004 of its own code the paper has a perplexity of 16.38 (2.796) at 350m.

    python train.py --config=configs/rwkv6.py:350m-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, base.SIZES_OF_15B, "rwkv6+rwkv4_channel")
    config.model.norm_bias = True
    config.model.embedding_norm = True
    config.model.rwkv4_channel.factor = 3.5
    return config
