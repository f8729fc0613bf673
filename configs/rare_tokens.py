"""Rare tokens: WikiText-103 with three models of the 125M class (arXiv 2405.04517, section 1 and
figure 2, right), twelve blocks of a mixer and a feed-forward layer that differ in the mixer alone.

    variant     mixer
    llama       attention
    lstm        LSTM
    xlstm_1_0   mLSTM, without a projection before it

Expected: figure 2 has no numbers; the LSTM is worst on rare tokens, the xLSTM is not (paper, in
words).

Tokens: 50k steps x 256 x 512 = 6.55B, some 50 epochs; of the GPT-2 tokenizer, as in the rest of the
paper (which does not say so here). Checkpoints are kept by their held-out loss, the paper's
criterion; what figure 2 shows is of the test split:

    python -m xlstm_jax.data.prepare --source=Salesforce/wikitext --tokenizer=gpt2 \\
        --output=data/wikitext-103-gpt2
    python train.py --config=configs/rare_tokens.py:xlstm_1_0 --workdir=DIR
    python eval.py --workdir=DIR --suite=frequencies --data=TEXT

Groups of tokens are decided here: below 10^2 occurrences in training, 10^2 to 10^3, ..., from 10^6
on. Weight decay is 0.1, as elsewhere in the paper.
"""

from xlstm_jax.errors import UserError
from xlstm_jax.models import mixers

from . import base

MODELS = {"llama": "attention+mlp", "lstm": "lstm+mlp", "xlstm_1_0": "mlstm_7b+mlp"}


def get_config(variant: str = "xlstm_1_0"):
    if variant not in MODELS:
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(MODELS)}"
        )
    mixer = MODELS[variant].partition("+")[0]
    if mixer not in mixers.names():
        raise UserError(
            f"the variant {variant!r} needs the mixer {mixer!r}, which is not there yet"
        )
    config = base.get_config()
    config.model.vocab_size = 50304
    config.model.dim = 768
    config.model.num_blocks = 12
    config.model.blocks = MODELS[variant]
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    if variant == "llama":
        config.model.norm = "rms"
        config.model.attention.num_heads = 12
    if variant == "xlstm_1_0":
        own = config.model.mlstm_7b
        own.num_heads, own.qk_factor, own.gate_soft_cap = 4, 1.0, None
        own.input_gate_bias, own.input_gate_bias_std = 0.0, 0.1

    config.data.path = "data/wikitext-103-gpt2"
    config.data.tokenizer = "data/wikitext-103-gpt2/tokenizer.json"
    config.data.context_length = 512
    config.data.batch_size = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 4_000
    config.train.steps = 50_000
    config.eval.every = 1_000
    config.eval.batch_size = 32
    config.checkpoint.every = 1_000
    config.log.every = 50
    return config
