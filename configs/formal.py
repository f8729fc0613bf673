"""Formal languages with small models (arXiv 2405.04517, section 4.1, figures 4 and 12).

    variant          model                                    expected scaled accuracy, 40 to 256
    parity-xlstm_1_1 2 blocks: mLSTM, sLSTM (xLSTM[1:1])      1.0 (paper, figure 4)
    parity-xlstm_0_1 2 sLSTM blocks                           1.0 (paper, figure 4)
    parity-xlstm_1_0 2 mLSTM blocks                           about 0 (paper, figure 4)
    parity-llama     2 blocks of attention and SwiGLU         about 0 (paper, figure 4)

Tokens: none are read, samples are made: lengths 3 to 40 in training, 40 to 256 in evaluation.
Expected loss: near 0 where parity is learned, 0.69 nats where it is not.
The paper does not say the dimension; here D is 64 with one head, as in the authors' code. The sLSTM
has no convolution and random recurrent weights (paper).

    python train.py --config=configs/formal.py:parity-xlstm_1_1 --workdir=DIR
"""

from xlstm_jax.errors import UserError

from . import base

MODELS = {
    "xlstm_1_1": "mlstm,slstm+mlp",
    "xlstm_0_1": "slstm+mlp",
    "xlstm_1_0": "mlstm",
    "llama": "attention+mlp",
}
LANGUAGES = ("parity",)


def get_config(variant: str = "parity-xlstm_1_1"):
    language, _, model = variant.partition("-")
    if language not in LANGUAGES or model not in MODELS:
        known = [f"{language}-{model}" for language in LANGUAGES for model in MODELS]
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(known)}"
        )
    config = base.get_config()
    config.task.name = "formal"
    config.task.formal.language = language

    config.model.blocks = MODELS[model]
    config.model.num_blocks = 2
    config.model.dim = 64
    config.model.vocab_size = 64
    if "mlstm" in config.model.blocks:
        config.model.mlstm.num_heads = 1
    if "slstm" in config.model.blocks:
        config.model.slstm.num_heads = 1
        config.model.slstm.conv_width = 0
        config.model.slstm.recurrent_init = "uniform"
    if "attention" in config.model.blocks:
        config.model.norm = "rms"
        config.model.attention.num_heads = 1
        config.model.mlp.activation = "silu"

    config.data.context_length = 40
    config.data.batch_size = 256
    config.eval.batch_size = 256
    config.eval.every = 500
    config.optimizer.learning_rate = 1e-3
    config.optimizer.beta2 = 0.99
    config.optimizer.warmup_steps = 300
    config.optimizer.final_fraction = 1e-2
    config.train.steps = 3_000
    config.checkpoint.every = 1_000
    config.log.every = 50
    return config
