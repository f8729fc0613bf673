"""Llama on SlimPajama: the Transformer that arXiv 2405.04517 compares xLSTM with (table 7, appendix
B): RMS norms, rotary positions, SwiGLU, no biases.

    variant     parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b        162.2M     0.003   not in the paper's tables
    350m-15b        406.6M     0.0015  2.657 (paper: perplexity 14.25, table 1, at peak rate 0.001)
    760m-15b        834.1M     0.00125 not in the paper's tables
    1.3b-15b      1,420.4M     0.001   not in the paper's tables
    2.7b-15b      2,779.5M     0.0008  not in the paper's tables
    125m-300b       162.2M     0.003   2.766 (paper: perplexity 15.89, table 3)
    350m-300b       406.6M     0.0015  2.501 (paper: perplexity 12.19, table 3)
    760m-300b       834.1M     0.00125 2.361 (paper: perplexity 10.60, table 3)
    1.3b-300b     1,420.4M     0.001   2.245 (paper: perplexity 9.44, table 3)

Tokens: "15b" 28,170 steps x 256 x 2048 = 14.77B, one epoch; "300b" 314.6B, with 512 sequences per
step at 1.3b. The default variant is 350m-15b.

    python train.py --config=configs/llama.py:1.3b-300b --workdir=DIR
"""

from . import base

SIZES = {
    "125m": base.Size(768, 12, 3e-3, 3e-3),
    "350m": base.Size(1024, 24, 1.5e-3, 1.5e-3),
    "760m": base.Size(1536, 24, 1.25e-3, 1.25e-3),
    "1.3b": base.Size(2048, 24, 1e-3, 1e-3),
    "2.7b": base.Size(2560, 32, 8e-4),
}
HEADS = {"125m": 12, "350m": 16, "760m": 16, "1.3b": 16, "2.7b": 32}


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, SIZES, "attention+mlp")
    config.model.norm = "rms"
    config.model.attention.num_heads = HEADS[variant.partition("-")[0]]
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    return config
