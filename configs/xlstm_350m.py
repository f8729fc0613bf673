"""xLSTM 350M on SlimPajama: xLSTM[1:0] and xLSTM[7:1] of arXiv 2405.04517, table 7 and appendix B.

    variant   parameters  tokens  steps x batch x length  peak rate  expected loss (perplexity)
    1_0-15b       409.3M  14.77B     28,170 x 256 x 2048      0.001  2.597 (13.43, table 1)
    7_1-15b       408.4M  14.77B     28,170 x 256 x 2048      0.001  2.601 (13.48, table 1)
    1_0-300b      409.3M  314.6B    600,000 x 256 x 2048    0.00075  2.426 (11.31, table 3)
    7_1-300b      408.4M  314.6B    600,000 x 256 x 2048    0.00075  2.431 (11.37, table 3)

The loss is of the held-out tokens, in nats per GPT-2 token, as printed in the paper.

48 blocks, sLSTM at [3, 5, 7, 40, 42, 44]. The default variant is 7_1-300b.

    python train.py --config=configs/xlstm_350m.py:7_1-300b --workdir=DIR
"""

from . import base


def get_config(variant: str = "7_1-300b"):
    return base.slimpajama(
        variant,
        dim=1024,
        num_blocks=48,
        slstm_positions=(3, 5, 7, 40, 42, 44),
        peaks={"15b": 0.001, "300b": 0.00075},
    )
