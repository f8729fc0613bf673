"""RWKV-4 on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (tables 1, 3 and 7): layer norms
with biases, one of them after the embedding, time mix and channel mix.

    variant     parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b        169.4M     0.003   not in the paper's tables
    350m-15b        430.5M     0.001   2.749 (paper: perplexity 15.62, table 1)
    760m-15b        891.0M     0.002   not in the paper's tables
    1.3b-15b      1,515.2M     0.001   not in the paper's tables
    2.7b-15b      2,984.8M     0.0008  not in the paper's tables
    125m-300b       169.4M     0.0006  2.813 (paper: perplexity 16.66, table 3)
    350m-300b       430.5M     0.0004  2.535 (paper: perplexity 12.62, table 3)
    760m-300b       891.0M     0.00025 2.356 (paper: perplexity 10.55, table 3)
    1.3b-300b     1,515.2M     0.0002  2.285 (paper: perplexity 9.83, table 3)

Tokens: "15b" 28,170 steps x 256 x 2048 = 14.77B, one epoch; "300b" 314.6B, with 512 sequences per
step at 1.3b. The default variant is 350m-15b.

    python train.py --config=configs/rwkv4.py:1.3b-300b --workdir=DIR
"""

from . import base

SIZES = {
    "125m": base.Size(768, 12, 3e-3, 6e-4),
    "350m": base.Size(1024, 24, 1e-3, 4e-4),
    "760m": base.Size(1536, 24, 2e-3, 2.5e-4),
    "1.3b": base.Size(2048, 24, 1e-3, 2e-4),
    "2.7b": base.Size(2560, 32, 8e-4),
}


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, SIZES, "rwkv4+rwkv4_channel")
    config.model.norm_bias = True
    config.model.embedding_norm = True
    return config
