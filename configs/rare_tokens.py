"""Rare tokens: WikiText-103 with three models of the 125M class (arXiv 2405.04517, section 1 and
figure 2, right), twelve blocks of a mixer and a feed-forward layer that differ in the mixer alone.

A variant is MODEL or MODEL-PRESET, as llama or xlstm_1_0-small.

    model       mixer
    llama       attention
    lstm        LSTM
    xlstm_1_0   mLSTM, without a projection before it

    preset   blocks  dim   steps  batch  length  text
    paper        12  768  50,000    256     512  WikiText-103, tokens of GPT-2
    small         2   64     500     16     128  the standard library's source, bytes

Expected: figure 2 has no numbers; the LSTM is worst on rare tokens, the xLSTM is not (paper, in
words).

Tokens: 50k steps x 256 x 512 = 6.55B, some 50 epochs; of the GPT-2 tokenizer, as in the rest of the
paper (which does not say so here). Checkpoints are kept by their held-out loss, the paper's
criterion; what figure 2 shows is of the test split, which is a text to be given; without one the
held-out text is shown:

    python -m xlstm_jax.data.prepare --source=Salesforce/wikitext --tokenizer=gpt2 \\
        --output=data/wikitext-103-gpt2
    python train.py --config=configs/rare_tokens.py:xlstm_1_0 --workdir=DIR
    python eval.py --workdir=DIR --suite=frequencies --data=TEXT
    python -m xlstm_jax.experiments rare_tokens --preset=paper \\
        --config.data.validation_sets=test=TEXT

The preset "small" reads any other text with --config.data.path, .tokenizer and model.vocab_size.
Groups of tokens are decided here: below 10^2 occurrences in training, 10^2 to 10^3, ..., from 10^6
on. Weight decay is 0.1, as elsewhere in the paper.
"""

from xlstm_jax.errors import UserError
from xlstm_jax.experiments.grid import Experiment

from . import base, small_models

PRESETS = ("paper", "small")
CELL = "text"
MODELS = {"llama": "attention+mlp", "lstm": "lstm+mlp", "xlstm_1_0": "mlstm_7b+mlp"}


def get_config(variant: str = "xlstm_1_0"):
    model, _, preset = variant.partition("-")
    preset = preset or PRESETS[0]
    if model not in MODELS or preset not in PRESETS:
        raise UserError(
            f"config variant {variant!r} does not exist: it is MODEL or MODEL-PRESET, with the "
            f"models {', '.join(MODELS)} and the presets {', '.join(PRESETS)}"
        )
    small = preset == "small"
    config = base.get_config()
    config.model.dim = 64 if small else 768
    config.model.num_blocks = 2 if small else 12
    config.model.blocks = MODELS[model]
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    if model == "llama":
        config.model.norm = "rms"
        config.model.attention.num_heads = 4 if small else 12
    if model == "xlstm_1_0":
        own = config.model.mlstm_7b
        own.num_heads, own.qk_factor, own.gate_soft_cap = 4, 1.0, None
        own.input_gate_bias, own.input_gate_bias_std = 0.0, 0.1

    config.data.context_length = 128 if small else 512
    config.data.batch_size = 16 if small else 256
    config.train.steps = 500 if small else 50_000
    if not small:
        config.model.vocab_size = 50304
        config.data.path = "data/wikitext-103-gpt2"
        config.data.tokenizer = "data/wikitext-103-gpt2/tokenizer.json"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50 if small else 4_000
    config.eval.every = 250 if small else 1_000
    config.eval.batch_size = 32
    config.eval.max_tokens = 100_000 if small else None
    config.checkpoint.every = 250 if small else 1_000
    config.log.every = 50
    return config


def get_experiment(preset: str) -> Experiment:
    """Figure 2, right."""
    small = small_models.check_preset(preset, PRESETS) == "small"
    return Experiment(
        title="Perplexity by how often the training text has a token",
        variant=f"{{model}}-{preset}",
        cells=(CELL,),
        models={name: small_models.LABELS[name] for name in MODELS},
        dims={CELL: (64 if small else 768,)},
        learning_rates={CELL: (1e-3,)},
        last_rate=1e-4,
        seeds=1,
        metric="perplexity",
        chosen_by=("validation", "perplexity"),
        higher_is_better=False,
        figure="groups",
        curve=("perplexity_at_", "times in training", "perplexity"),
        frequencies=True,
        reduced=small,
        notes=(
            "Of the test text, or of the held-out text where no test text is given. The paper's "
            "figure has no numbers.",
        ),
    )
