"""xLSTM 2.7B on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens  steps x batch x length  peak rate  expected loss (perplexity)
    1_0-15b     2,788.4M  14.77B     28,170 x 256 x 2048     0.0008  not in the paper
    7_1-15b     2,783.3M  14.77B     28,170 x 256 x 2048     0.0008  not in the paper

The loss is of the held-out tokens, in nats per GPT-2 token, as printed in the paper.

64 blocks, sLSTM at [3, 5, 7, 9, 54, 56, 58, 60]: ours, none are published. The default variant is
7_1-15b.

    python train.py --config=configs/xlstm_2.7b.py:7_1-15b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-15b"):
    return base.slimpajama(
        variant,
        dim=2560,
        num_blocks=64,
        slstm_positions=(3, 5, 7, 9, 54, 56, 58, 60),
        peaks={"15b": 0.0008},
    )
