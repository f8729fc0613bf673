"""An image task that learns: scikit-learn's handwritten digits, the small stand-in for CIFAR-10,
whose files tests don't have. 8 x 8 pixels are a sequence of 64 values.
"""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from xlstm_jax import tasks
from xlstm_jax.config import default_config_dict, from_config_dict
from xlstm_jax.tasks.classification import Classification, Plan
from xlstm_jax.training.loop import train

DIGITS = load_digits()
SPLITS = {"train": slice(0, 1400), "validation": slice(1400, 1600), "test": slice(1600, 1797)}


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """It has no settings."""


class Digits(Classification):
    """Tells which digit was written."""

    plan = Plan(classes=10, features=1, pooling="mean")

    def count(self, split):
        return len(DIGITS.target[SPLITS[split]])

    def sample(self, split, seed, number):
        number = SPLITS[split].start + number % self.count(split)
        return DIGITS.data[number][:, None] / 8 - 1, int(DIGITS.target[number])


@pytest.mark.slow
def test_digits_are_learned_far_above_chance(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_TABLE", dict(tasks._TABLE))
    tasks.register("digits", tasks.TaskKind(DigitsConfig, Digits))
    values = {
        "task.name": "digits",
        "model.blocks": "mlstm",
        "model.num_blocks": 1,
        "model.dim": 32,
        "model.mlstm.num_heads": 2,
        "model.embedding_norm": False,
        "data.context_length": 64,
        "data.batch_size": 32,
        "eval.batch_size": 100,
        "eval.every": 1000,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 5,
        "train.steps": 150,
        "log.tensorboard": False,
        "mesh.data": 1,
    }
    summary = train(from_config_dict(default_config_dict(), values), tmp_path)
    assert summary["accuracy"] > 0.4  # chance is 0.1
    assert np.isfinite(summary["loss"])
