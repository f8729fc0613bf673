"""A small xLSTM with both kinds of blocks on Python's own source text: the first thing to run.

Data: the bytes of the standard library on this machine (about 10 MB, nothing to download); every
20th file is held out.
Model: 3 blocks of dimension 128, the second an sLSTM block; 409 thousand parameters.
Tokens: 3.1 million. Expected held-out loss: 1.31 nats, 1.89 bits per byte (measured; `gzip -9`:
2.06), in less than 3 minutes on 2 CPU cores.

    make train
    python train.py --config=configs/quickstart.py --workdir=DIR
"""

from . import base


def get_config():
    config = base.get_config()
    config.model.dim = 128
    config.model.num_blocks = 3
    config.model.blocks = "mlstm,slstm+mlp,mlstm"
    config.data.context_length = 256
    config.data.batch_size = 8
    config.optimizer.learning_rate = 8e-3  # high, because the run has few steps
    config.optimizer.eps = 1e-8
    config.optimizer.warmup_steps = 50
    config.train.steps = 1500
    config.log.every = 20
    config.eval.every = 1500
    config.eval.context_length = 1024  # longer than in training: the state simply goes on
    config.checkpoint.every = 500
    return config
