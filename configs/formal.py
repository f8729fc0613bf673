"""Formal languages with small models (arXiv 2405.04517, section 4.1, figures 4 and 12).

A variant is LANGUAGE-MODEL, LANGUAGE-MODEL-PRESET or LANGUAGE-MODEL-PRESET-DIM, as
parity-xlstm_1_1 or majority-llama-paper-128.

    language                                                          answers by chance
    bucket_sort, odds_first; missing_duplicate                        1/10; 1/9
    modular_arithmetic_brackets, solve_equation                       1/5
    reverse_string; stack_manipulation                                1/10; 1/4
    parity, even_pairs; cycle_navigation, modular_arithmetic          1/2; 1/5
    majority, majority_count                                          1/63
    repetition; set                                                   1/10; 1/126

    preset      steps    batch  peak rate  source
    small         1,500    128  1e-3       what a CPU core does in three minutes
    paper       100,000    256  1e-3       appendix B.1.1; 1e-2, 1e-3, 1e-4 with two seeds each
    repository   20,000    256  1e-3       the authors' code, which has parity alone

Models are those of small_models.py. Tokens: none are read, samples are made: lengths 3 to 40 in
training, 40 to 256 in evaluation. Expected: scaled accuracy 1.0 on parity with xlstm_0_1 and
xlstm_1_1, about 0 with xlstm_1_0 and llama (paper, figure 4); a loss near 0 where parity is
learned, 0.69 nats where it is not. The paper's other values stand in `PAPER`.

The paper is silent on what follows; decided here, each a key:
    model.dim 64 and one head, as in the authors' code
    task.formal.lengths           shortest sample 3, as in the authors' code; a sample counts with
                                  its answer, and one that a language has not in a length is the
                                  next shorter one
    task.formal.ties "smallest"   majority with equally frequent letters
    the learning rate that is shown is the best on held-out samples of the training's lengths
    (validation/short), by loss where the accuracies are equal; results are of other samples (test)
The sLSTM has no convolution and random recurrent weights (paper); "repository" has the convolution
and zeros.

    python train.py --config=configs/formal.py:parity-xlstm_1_1 --workdir=DIR
    python -m xlstm_jax.experiments formal --preset=small
"""

from xlstm_jax.analysis.paper.values import rows_of
from xlstm_jax.experiments.grid import Experiment
from xlstm_jax.tasks.formal_languages import LANGUAGES

from . import base, small_models

# steps, batch size, warm-up, last learning rate, beta2, settings of the sLSTM, held-out samples
PAPER_SLSTM = {"conv_width": 0, "recurrent_init": "uniform"}
PRESETS = {
    "small": (1_500, 128, 150, 1e-5, 0.99, PAPER_SLSTM, 2_048),
    "paper": (100_000, 256, 10_000, 1e-5, 0.99, PAPER_SLSTM, 8_192),
    "repository": (20_000, 256, 2_000, 1e-6, 0.999, {}, 8_192),
}
LEARNING_RATE = 1e-3


def get_config(variant: str = "parity-xlstm_1_1"):
    language, model, preset, dim = small_models.split_variant(variant, LANGUAGES, PRESETS)
    steps, batch_size, warmup, last_rate, beta2, slstm, held_out = PRESETS[preset]
    config = base.get_config()
    config.task.name = "formal"
    config.task.formal.language = language
    config.task.formal.held_out_samples = held_out
    config.task.formal.test_samples = held_out

    config.model.vocab_size = LANGUAGES[language].vocab_size
    small_models.set_model(config, model, dim=dim or 64, slstm=slstm)

    config.data.context_length = 40
    config.data.batch_size = batch_size
    config.eval.batch_size = 256
    config.eval.every = 500
    config.optimizer.learning_rate = LEARNING_RATE
    config.optimizer.beta2 = beta2
    config.optimizer.warmup_steps = warmup
    config.optimizer.final_fraction = last_rate / LEARNING_RATE
    config.train.steps = steps
    config.checkpoint.every = 1_000
    config.log.every = 50
    return config


# Scaled accuracies of the paper by model and language: figure 12, and what is known of figure 4.
PAPER = {
    model: row | rows_of("fig4_formal_scaled_acc").get(model, {})
    for model, row in rows_of("fig12_formal_scaled_acc").items()
}
SMALL_CELLS = (
    "parity",
    "cycle_navigation",
    "even_pairs",
    "modular_arithmetic",
    "majority",
    "bucket_sort",
    "missing_duplicate",
)
SMALL_MODELS = ("llama", "mamba", "rwkv4", "lstm", "xlstm_1_0", "xlstm_0_1", "xlstm_1_1")
OF_PAPER = (
    "llama",
    "mamba",
    "retention",
    "hyena",
    "rwkv4",
    "rwkv5",
    "rwkv6",
    "lstm",
    "lstm_block",
    "xlstm_0_1",
    "xlstm_1_0",
    "xlstm_1_1",
)


def get_experiment(preset: str) -> Experiment:
    """Figures 4 and 12."""
    small = small_models.check_preset(preset, ("small", "paper")) == "small"
    cells = SMALL_CELLS if small else tuple(LANGUAGES)
    rates = dict.fromkeys(cells, (1e-2, 1e-3, 1e-4))
    if small:  # parity is what the paper argues with; a rate for the others takes half the time
        rates = dict.fromkeys(cells, (3e-3,)) | {"parity": (1e-2, 1e-3)}
    names = SMALL_MODELS if small else OF_PAPER
    return Experiment(
        title="Formal languages: scaled accuracy at lengths of 40 to 256",
        variant=f"{{cell}}-{{model}}-{preset}-{{dim}}",
        cells=cells,
        models={name: small_models.LABELS[name] for name in names},
        dims=dict.fromkeys(cells, (64,)),
        learning_rates=rates,
        last_rate=1e-5,
        seeds=1 if small else 2,
        metric="scaled_accuracy",
        chosen_by=("validation/short", "accuracy"),
        solved=0.99 if small else None,
        stages=3 if small else 1,
        curve=("right_at_", "length of the sample", "share of right answers"),
        paper=PAPER,
        absent={name: why for name, why in small_models.absent().items() if name in names},
        reduced=small,
        notes=(
            "Accuracies are of single answer tokens, scaled to 0 for the paper's chance. Majority "
            "with equally frequent letters is the smallest one.",
        ),
    )
