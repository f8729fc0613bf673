"""xLSTM 125M on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens  steps x batch x length  peak rate  expected loss (perplexity)
    1_0-15b       163.8M  14.77B     28,170 x 256 x 2048      0.003  not in the paper
    7_1-15b       163.7M  14.77B     28,170 x 256 x 2048      0.003  not in the paper
    1_0-300b      163.8M  314.6B    600,000 x 256 x 2048     0.0015  2.683 (14.63, table 3)
    7_1-300b      163.7M  314.6B    600,000 x 256 x 2048     0.0015  2.681 (14.60, table 3)

The loss is of the held-out tokens, in nats per GPT-2 token, as printed in the paper.

24 blocks, sLSTM at [3, 20] (really 11:1). The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_125m.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.slimpajama(
        variant,
        dim=768,
        num_blocks=24,
        slstm_positions=(3, 20),
        peaks={"15b": 0.003, "300b": 0.0015},
    )
