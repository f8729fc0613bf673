"""An experiment of two languages, two models and two learning rates, for tests."""

from xlstm_jax.config import default_config_dict
from xlstm_jax.experiments.grid import Experiment

BLOCKS = {"small": "mlp", "large": "mlp,mlp"}


def get_config(variant):
    language, _, model = variant.partition("-")
    config = default_config_dict()
    config.task.name = "formal"
    config.task.formal.language = language
    config.task.formal.lengths = (3, 6)
    config.task.formal.held_out_lengths = (6, 8)
    config.task.formal.held_out_samples = 8
    config.task.formal.test_samples = 8
    config.model.blocks = BLOCKS[model]
    config.model.num_blocks = len(BLOCKS[model].split(","))
    config.model.vocab_size = 16
    config.data.context_length = 8
    config.data.batch_size = 8
    config.eval.batch_size = 8
    config.eval.every = 10
    config.optimizer.warmup_steps = 1
    config.train.steps = 4
    config.mesh.data = 1
    return config


def get_experiment(preset):
    cells = ("parity", "even_pairs")
    return Experiment(
        title=f"Two languages ({preset})",
        variant="{cell}-{model}",
        cells=cells,
        models={"small": "Small", "large": "Large", "lost": "Lost"},
        dims=dict.fromkeys(cells, (8,)),
        learning_rates=dict.fromkeys(cells, (0.1, 0.01)),
        last_rate=1e-3,
        seeds=2,
        metric="scaled_accuracy",
        chosen_by=("validation/short", "accuracy"),
        solved=0.9,
        stages=2,
        curve=("right_at_", "length", "share of right answers"),
        paper={"Small": {"parity": 0.25}},
        left_out={"latin": "it is dead"},
        absent={"lost": "it needs the mixer 'lost', which is not there yet"},
    )
