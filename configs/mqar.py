"""Multi-query associative recall (arXiv 2405.04517, section 4.1, figures 5 and 13 to 16, appendix
B.1.2).

A variant is LENGTHxPAIRS-MODEL, then perhaps -PRESET or -PRESET-DIM, as 64x4-xlstm_1_1 or
2048x256-llama-paper-512.

    experiment 1   64x4, 128x8, 256x16
    experiment 2   756x48, 756x96, 1024x48, 1024x96, 1024x256, 2048x48, 2048x96, 2048x256
    experiment 3   what was learned at 2048 tokens, at 4096, 6144, 8192 (preset "paper")

The paper also lists 756x256, of which its generator can't make a sequence (256 pairs and their
queries need 1024 tokens): that variant is refused. With 1024x256 every slot has a query.

    preset   steps                          batch           learning rate
    small    2,000                          64              2.15e-3
    paper    64 epochs of 100,000 samples:  512 to 24, by   2.15e-3; at 2048 tokens 2.2e-4. The
             12,544 to 266,688              the length      paper tries four each

Models are those of small_models.py. Tokens: none are read, samples are made, of 8192 tokens.
Expected accuracy: about 1 in experiment 1 with xlstm_1_1, xlstm_1_0, mamba, rwkv5, rwkv6 at every
dimension (paper, in words; its figures have no numbers).

The paper is silent on what follows; decided here, each a key:
    model.dim                  64; the paper's curves go over dimensions: 32 to 512 in experiment 1,
                               64 to 512 in experiment 2
    heads                      1 of every mixer
    model.blocks of xlstm_1_1  the sLSTM first: an mLSTM with no block before it (the order of the
                               authors' code for parity) finds one of the values, not the right one
                               (small, 64x4: accuracy 0.25 after 2,000 steps, 0.99 in this order)
    model.vocab_size           512 in the preset "small": of 8,192 tokens, each of which has to be
                               met often, none is learned in so few steps; the paper has 8,192
    model.tie_embeddings       off; on for mamba alone, for which the paper has a second curve
                               without it
    optimizer.final_fraction   the last learning rate is 1e-5 in all runs; the paper names 1e-4 and
                               1e-5 without saying which is whose
    task.mqar.filler "zero"    token 0, as figure 13 shows

    python train.py --config=configs/mqar.py:64x4-xlstm_1_1 --workdir=DIR
    python -m xlstm_jax.experiments mqar --preset=small
"""

from xlstm_jax.errors import UserError
from xlstm_jax.experiments.grid import Experiment
from xlstm_jax.tasks.mqar import infeasible

from . import base, small_models

VOCABULARY, SMALL_VOCABULARY = 8192, 512
SAMPLES, EPOCHS = 100_000, 64
# length -> batch size, pairs
CELLS = {
    64: (512, (4,)),
    128: (512, (8,)),
    256: (256, (16,)),
    756: (128, (48, 96, 256)),
    1024: (96, (48, 96, 256)),
    2048: (24, (48, 96, 256)),
}
NAMES = {f"{length}x{pairs}": (length, pairs) for length in CELLS for pairs in CELLS[length][1]}
PRESETS = ("small", "paper")
# keys of `model` that are one model's own here
OF_MODELS = {"mamba": {"tie_embeddings": True}, "xlstm_1_1": {"blocks": "slstm+mlp,mlstm"}}
LAST_RATE = 1e-5


def get_config(variant: str = "64x4-xlstm_1_1"):
    cell, model, preset, dim = small_models.split_variant(variant, NAMES, dict.fromkeys(PRESETS))
    length, pairs = NAMES[cell]
    if why := infeasible(length, pairs, VOCABULARY):
        raise UserError(f"config variant {variant!r} can't be: {why}, and it has {length}")
    config = base.get_config()
    config.task.name = "mqar"
    config.task.mqar.pairs = pairs

    config.model.vocab_size = VOCABULARY if preset == "paper" else SMALL_VOCABULARY
    small_models.set_model(config, model, dim=dim or 64)
    config.model.tie_embeddings = False
    config.model.update(OF_MODELS.get(model, {}))

    config.data.context_length = length
    config.optimizer.learning_rate = 2.2e-4 if length == 2048 else 2.15e-3
    config.optimizer.final_fraction = LAST_RATE / config.optimizer.learning_rate
    if preset == "paper":
        config.data.batch_size = CELLS[length][0]
        config.train.steps = EPOCHS * -(-SAMPLES // config.data.batch_size)
        config.eval.every = config.train.steps // EPOCHS
        if length == 2048:
            config.task.mqar.test_lengths = (4096, 6144, 8192)  # experiment 3
    else:
        config.data.batch_size = 64
        config.train.steps = 2_000
        config.eval.every = 500
    config.task.mqar.train_samples = SAMPLES
    config.eval.batch_size = config.data.batch_size
    config.optimizer.warmup_steps = config.train.steps // 10
    config.checkpoint.every = 1_000
    config.log.every = 50
    return config


OF_PAPER = (
    "llama",
    "mamba",
    "retention",
    "hyena",
    "h3",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "lstm",
    "lstm_block",
    "xlstm_0_1",
    "xlstm_1_0",
    "xlstm_1_1",
)
SMALL_MODELS = ("llama", "mamba", "rwkv4", "lstm", "xlstm_0_1", "xlstm_1_0", "xlstm_1_1")
DIMS = (32, 64, 128, 256, 512), (64, 128, 256, 512)  # of experiment 1, of experiment 2
RATES, LONG_RATES = (1e-2, 2.15e-3, 4.6e-4, 1e-4), (1e-3, 2.2e-4, 5e-5, 1e-5)


def get_experiment(preset: str) -> Experiment:
    """Figures 5 and 13 to 16: the three experiments at once; --cells takes some of it."""
    small = small_models.check_preset(preset, PRESETS) == "small"
    left_out = {name: why for name, cell in NAMES.items() if (why := infeasible(*cell, VOCABULARY))}
    cells = tuple(name for name in NAMES if name not in left_out)
    names = SMALL_MODELS if small else OF_PAPER
    if small:
        cells, left_out = ("64x4", "128x8"), {}
    rates = {cell: LONG_RATES if cell.startswith("2048") else RATES for cell in cells}
    return Experiment(
        title="Multi-query associative recall: accuracy by tokens x pairs",
        variant=f"{{cell}}-{{model}}-{preset}-{{dim}}",
        cells=cells,
        models={name: small_models.LABELS[name] for name in names},
        dims={cell: (64,) if small else DIMS[NAMES[cell][0] > 256] for cell in cells},
        learning_rates=dict.fromkeys(cells, (5e-3, 2.15e-3)) if small else rates,
        last_rate=LAST_RATE,
        seeds=1,
        metric="accuracy",
        chosen_by=("validation", "accuracy"),
        solved=0.995 if small else None,
        stages=4 if small else 1,
        figure="dims",
        spread="interval",
        curve=None if small else ("test/", "tokens, trained at 2048", "accuracy"),
        left_out=left_out,
        absent={name: why for name, why in small_models.absent().items() if name in names},
        reduced=small,
        notes=(
            "A query's accuracy; the filler is token 0 and queries come early (power 0.01). The "
            "paper shows figures without numbers.",
        ),
    )
