"""A small xLSTM with both kinds of blocks on Python's own source text: the first thing to run.

Tokens: bytes of the standard library on this machine (about 10 MB, nothing to download), every 20th file held out.
Model: 4 blocks of 128, the second an sLSTM block.
Expected: below 2.0 bits per byte on the held-out files (`gzip -9`: 2.1), in less than 3 minutes on 2 CPU cores.

    make train
    python train.py --config=configs/quickstart.py --workdir=DIR
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.dim = 128
    config.model.num_blocks = 4
    config.model.slstm_positions = (1,)
    config.data.context_length = 256
    config.data.batch_size = 16
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 40
    config.train.steps = 400
    config.log.every = 10
    config.eval.every = 200
    config.eval.batch_size = 16
    config.checkpoint.every = 200
    return config
