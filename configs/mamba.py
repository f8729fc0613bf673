"""Mamba on SlimPajama, as arXiv 2405.04517 compares xLSTM with it (tables 1, 3 and 7): RMS norms,
one S6 layer per block, twice as many blocks as Llama has.

    variant     parameters  peak rate  expected held-out loss, nats per GPT-2 token
    125m-15b        167.8M     0.003   not in the paper's tables
    350m-15b        423.1M     0.0015  2.617 (paper: perplexity 13.70, table 1, at peak rate 0.001)
    760m-15b        870.5M     0.00125 not in the paper's tables
    1.3b-15b      1,475.3M     0.001   not in the paper's tables
    2.7b-15b      2,897.2M     0.0008  not in the paper's tables
    125m-300b       167.8M     0.003   2.713 (paper: perplexity 15.08, table 3)
    350m-300b       423.1M     0.0015  2.454 (paper: perplexity 11.64, table 3)
    760m-300b       870.5M     0.00125 2.326 (paper: perplexity 10.24, table 3)
    1.3b-300b     1,475.3M     0.001   2.213 (paper: perplexity 9.14, table 3)

Tokens: "15b" 28,170 steps x 256 x 2048 = 14.77B, one epoch; "300b" 314.6B, with 512 sequences per
step at 1.3b. The default variant is 350m-15b.

    python train.py --config=configs/mamba.py:1.3b-300b --workdir=DIR
"""

from . import base

SIZES = {
    "125m": base.Size(768, 24, 3e-3, 3e-3),
    "350m": base.Size(1024, 48, 1.5e-3, 1.5e-3),
    "760m": base.Size(1536, 48, 1.25e-3, 1.25e-3),
    "1.3b": base.Size(2048, 48, 1e-3, 1e-3),
    "2.7b": base.Size(2560, 64, 8e-4),
}


def get_config(variant: str = "350m-15b"):
    config = base.baseline(variant, SIZES, "mamba")
    config.model.norm = "rms"
    return config
