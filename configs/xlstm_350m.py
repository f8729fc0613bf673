"""xLSTM 350M on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens   steps x batch   peak rate  expected loss, nats (perplexity)
    1_0-15b      409.3M   14.77B   28,170 x 256   0.001      2.597 (paper: 13.43, table 1)
    7_1-15b      408.4M   14.77B   28,170 x 256   0.001      2.601 (paper: 13.48, table 1)
    1_0-300b     409.3M   314.6B  600,000 x 256   0.00075    2.426 (paper: 11.31, table 3)
    7_1-300b     408.4M   314.6B  600,000 x 256   0.00075    2.431 (paper: 11.37, table 3)

48 blocks, sLSTM at [3, 5, 7, 40, 42, 44]. The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_350m.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.xlstm(
        variant,
        dim=1024,
        num_blocks=48,
        slstm_positions=(3, 5, 7, 40, 42, 44),
        peaks=(0.001, 0.00075),
    )
