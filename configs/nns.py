"""Nearest neighbour search (arXiv 2405.04517, section 4.1 and figure 2, left).

A variant is MODEL, MODEL-PRESET or MODEL-PRESET-DIM, as xlstm_0_1 or lstm-paper-128, with the
models of small_models.py; the paper has llama, lstm and xlstm_0_1.

    preset   steps     dim   batch   learning rate
    small      2,000    64      64   1e-3
    paper    100,000   128     256   1e-3; the paper tries 1e-1, 1e-2, 1e-3, 1e-4 with five seeds

Tokens: none are read, samples are made. Expected loss, a mean squared error: figure 2 has no
numbers, xlstm_0_1 is best and the LSTM worst; 0.5 everywhere gives 0.083, the mean of the values
so far 0.07 to 0.08.

The paper is silent on what follows; decided here, each a key:
    data.batch_size                  256 in the preset "paper"
    task.nearest_neighbour.lengths   2 to 64, the first vector included
    task.nearest_neighbour.asked     "every" token after the first, since the value of the most
                                     similar vector "so far" is asked for; the error of the last
                                     tokens is told beside it
    the first vector's value is 0; one head

    python train.py --config=configs/nns.py:xlstm_0_1 --workdir=DIR
    python -m xlstm_jax.experiments nns --preset=small
"""

from xlstm_jax.experiments.grid import Experiment

from . import base, small_models

# steps, dim, batch size
PRESETS = {"small": (2_000, 64, 64), "paper": (100_000, 128, 256)}
LAST_RATE = 1e-7


def get_config(variant: str = "xlstm_0_1"):
    _, model, preset, own_dim = small_models.split_variant(variant, None, PRESETS)
    steps, dim, batch_size = PRESETS[preset]
    config = base.get_config()
    config.task.name = "nearest_neighbour"
    small_models.set_model(config, model, dim=own_dim or dim)
    config.model.embedding_norm = False  # there is no embedding
    config.model.dropout = 0.1

    config.data.context_length = 64
    config.data.batch_size = batch_size
    config.eval.batch_size = 256
    config.eval.every = 500
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = steps // 10
    config.optimizer.final_fraction = LAST_RATE / config.optimizer.learning_rate
    config.train.steps = steps
    config.checkpoint.every = 1_000
    config.log.every = 50
    return config


def get_experiment(preset: str) -> Experiment:
    """Figure 2, left."""
    small = small_models.check_preset(preset, tuple(PRESETS)) == "small"
    names = ("llama", "lstm", "xlstm_0_1")
    return Experiment(
        title="Nearest neighbour search: mean squared error",
        variant=f"{{model}}-{preset}-{{dim}}",
        cells=("search",),
        models={name: small_models.LABELS[name] for name in names},
        dims={"search": (PRESETS[preset][1],)},
        learning_rates={"search": (1e-2, 1e-3) if small else (1e-1, 1e-2, 1e-3, 1e-4)},
        last_rate=LAST_RATE,
        seeds=3 if small else 5,
        metric="loss",
        chosen_by=("validation", "loss"),
        higher_is_better=False,
        figure="bars",
        spread="interval",
        curve=("error_after_", "revisions of the answer", "mean squared error"),
        absent={name: why for name, why in small_models.absent().items() if name in names},
        reduced=small,
        notes=("Errors of every token after the first. The paper's figure has no numbers.",),
    )
