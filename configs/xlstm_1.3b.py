"""xLSTM 1.3B on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens  steps x batch x length  peak rate  expected loss (perplexity)
    1_0-15b     1,422.6M  14.77B     28,170 x 256 x 2048     0.0009  not in the paper
    7_1-15b     1,420.1M  14.77B     28,170 x 256 x 2048     0.0009  not in the paper
    1_0-300b    1,422.6M  314.6B    300,000 x 512 x 2048     0.0005  2.185 (8.89, table 3)
    7_1-300b    1,420.1M  314.6B    300,000 x 512 x 2048     0.0005  2.197 (9.00, table 3)

The loss is of the held-out tokens, in nats per GPT-2 token, as printed in the paper.

48 blocks, sLSTM at [3, 5, 7, 40, 42, 44]. The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_1.3b.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.slimpajama(
        variant,
        dim=2048,
        num_blocks=48,
        slstm_positions=(3, 5, 7, 40, 42, 44),
        peaks={"15b": 0.0009, "300b": 0.0005},
        batch_size=512,  # of the 300B run: 300k steps
    )
