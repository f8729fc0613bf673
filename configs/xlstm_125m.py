"""xLSTM 125M on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens   steps x batch   peak rate  expected loss, nats (perplexity)
    1_0-15b      163.8M   14.77B   28,170 x 256   0.003      not in the paper's tables
    7_1-15b      163.7M   14.77B   28,170 x 256   0.003      not in the paper's tables
    1_0-300b     163.8M   314.6B  600,000 x 256   0.0015     2.683 (paper: 14.63, table 3)
    7_1-300b     163.7M   314.6B  600,000 x 256   0.0015     2.681 (paper: 14.60, table 3)

24 blocks, sLSTM at [3, 20] (really 11:1). The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_125m.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.xlstm(
        variant,
        dim=768,
        num_blocks=24,
        slstm_positions=(3, 20),
        peaks=(0.003, 0.0015),
    )
