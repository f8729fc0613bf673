"""xLSTM 1.3B on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens   steps x batch   peak rate  expected loss, nats (perplexity)
    1_0-15b    1,422.6M   14.77B   28,170 x 256   0.0009     not in the paper's tables
    7_1-15b    1,420.1M   14.77B   28,170 x 256   0.0009     not in the paper's tables
    1_0-300b   1,422.6M   314.6B  300,000 x 512   0.0005     2.185 (paper: 8.89, table 3)
    7_1-300b   1,420.1M   314.6B  300,000 x 512   0.0005     2.197 (paper: 9.00, table 3)

48 blocks, sLSTM at [3, 5, 7, 40, 42, 44]. The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_1.3b.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.xlstm(
        variant,
        dim=2048,
        num_blocks=48,
        slstm_positions=(3, 5, 7, 40, 42, 44),
        peaks=(0.0009, 0.0005),
        batch_size=512,  # of the 300B run: 300k steps
    )
