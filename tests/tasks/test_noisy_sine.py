"""A task of one's own: real-valued input, a mean squared error, registered from outside. The
trainer knows nothing of it.
"""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax import tasks
from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models.sequence_model import SequenceModel
from xlstm_jax.settings import setting
from xlstm_jax.tasks.task import HeldOut, Task
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records


@dataclasses.dataclass(frozen=True)
class NoisySineConfig:
    noise: float = setting(0.1, "standard deviation", at_least=0)
    held_out_samples: int = setting(10, "number of these", at_least=1)


class SineBatch(NamedTuple):
    inputs: np.ndarray  # [B T 1]
    targets: np.ndarray  # [B T 1], the next value without noise
    mask: np.ndarray  # [B T], which of them count


class NoisySine(Task):
    """Predicts the next value of a sine wave that is seen through noise."""

    def model(self, *, stacked=False):
        return SequenceModel(self.model_config, 1, stacked)

    def shapes(self, rows, time=None):
        time = time or self.data.context_length
        values = jax.ShapeDtypeStruct((rows, time, 1), jnp.float32)
        return SineBatch(values, values, jax.ShapeDtypeStruct((rows, time), jnp.bool_))

    def init(self, model, key):
        return model.init(key, jnp.zeros((1, 1, 1)))

    def batch(self, seed, step, rows):
        return self.waves([seed, 0], [step * self.data.batch_size + row for row in rows])

    def held_out(self):
        count = self.settings.held_out_samples

        def batches(rows):
            for first in range(0, count, rows):
                numbers = np.arange(first, first + rows)
                batch = self.waves([self.data.seed, 1], numbers)
                yield batch._replace(mask=batch.mask & (numbers < count)[:, None])

        return {"validation": HeldOut(batches, self.data.context_length)}

    def waves(self, seed, numbers):
        """Each a function of its number; row k counts from a step of its own on."""
        time = np.arange(self.data.context_length + 1)
        rows = []
        for number in numbers:
            draw = np.random.default_rng([*seed, int(number)])
            wave = np.sin(draw.uniform(0.2, 0.6) * time + draw.uniform(0, 2 * np.pi))
            noisy = wave + self.settings.noise * draw.normal(size=time.shape)
            mask = time[:-1] >= draw.integers(0, len(time))
            rows.append((noisy[:-1, None], wave[1:, None], mask))
        inputs, targets, mask = (np.stack(part) for part in zip(*rows, strict=True))
        return SineBatch(inputs.astype(np.float32), targets.astype(np.float32), mask)

    def sums(self, model, variables, batch, *, train=False, rngs=None):
        y, _ = model.apply(variables, batch.inputs, train=train, rngs=rngs)
        error = jnp.where(batch.mask[..., None], y - batch.targets, 0)
        number = jnp.sum(batch.mask, dtype=jnp.float32)
        return {
            "loss": (jnp.sum(error**2), number),
            "absolute_error": (jnp.sum(jnp.abs(error)), number),
        }


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Known in these tests and in no others."""
    monkeypatch.setattr(tasks, "_TABLE", dict(tasks._TABLE))
    tasks.register("noisy_sine", tasks.TaskKind(NoisySineConfig, NoisySine))


def sine(overrides=None):
    values = {
        "task.name": "noisy_sine",
        "model.dim": 16,
        "model.num_blocks": 1,
        "model.mlstm.num_heads": 2,
        "data.context_length": 24,
        "data.batch_size": 16,
        "mesh.data": 1,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 2,
        "train.steps": 8,
        "log.every": 1,
        "log.tensorboard": False,
        "eval.batch_size": 8,
        "eval.every": 4,
        "checkpoint.every": 4,
    }
    return from_config_dict(default_config_dict(), values | (overrides or {}))


def records(workdir, split):
    return [r for r in read_records(workdir / "metrics.jsonl") if r["split"] == split]


def losses(workdir, split="train"):
    return [record["loss"] for record in records(workdir, split)]


def test_its_settings_are_keys_like_all_others():
    config = sine({"task.noisy_sine.noise": 0.5})
    assert task_of(config).settings == NoisySineConfig(noise=0.5)
    assert config.values()["task"] == {
        "name": "noisy_sine",
        "noisy_sine": {"noise": 0.5, "held_out_samples": 10},
    }
    with pytest.raises(UserError, match="task.noisy_sine.noise is -1.0; it must be at least 0"):
        sine({"task.noisy_sine.noise": -1.0})
    with pytest.raises(
        UserError, match="data.tokenizer is 'x', but the task 'noisy_sine' does not"
    ):
        sine({"data.tokenizer": "x"})
    with pytest.raises(UserError, match="model.vocab_size is 64, but this task's model reads and"):
        sine({"model.vocab_size": 64})


def test_it_is_unknown_where_it_is_not_registered():
    tasks._TABLE.pop("noisy_sine")
    with pytest.raises(UserError, match="task.name is 'noisy_sine'; it must be one of language_"):
        sine()


@pytest.mark.slow
def test_it_is_trained_in_parts_and_over_devices_as_in_one(tmp_path, capsys):
    """Eight devices with two micro-batches see the losses of one device with one, though rows count
    between 0 and 24 of their values.
    """
    summary = loop.train(sine(), tmp_path / "one")
    spread = {"mesh.data": 4, "mesh.fsdp": 2, "train.accumulation_steps": 2}
    loop.train(sine(spread), tmp_path / "eight")
    one, eight = losses(tmp_path / "one"), losses(tmp_path / "eight")
    assert len(one) == 8 and one[-1] < one[0]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    np.testing.assert_allclose(
        losses(tmp_path / "eight", "validation"), losses(tmp_path / "one", "validation"), rtol=1e-5
    )
    counted = [record["tokens"] for record in records(tmp_path / "one", "train")]
    expected = [task_of(sine()).batch(0, step, range(16)).mask.sum() for step in range(8)]
    assert counted == expected and len(set(counted)) > 1

    last = records(tmp_path / "one", "validation")[-1]
    assert (last["loss"], last["absolute_error"]) == (summary["loss"], summary["absolute_error"])
    shown = f"held-out loss {summary['loss']:.4f}, absolute error {summary['absolute_error']:.4f}"
    printed = capsys.readouterr().out.splitlines()
    assert shown in printed and "" not in printed  # it describes itself with no line
    assert (tmp_path / "one/loss.png").is_file()
    assert json.loads((tmp_path / "one/config.json").read_text())["task"]["name"] == "noisy_sine"


@pytest.mark.slow
def test_the_trained_model_can_be_opened_and_has_the_held_out_loss_that_was_told(tmp_path):
    """Every held-out sample once, the last batch's filling without weight: against NumPy."""
    config = sine({"train.steps": 2})
    summary = loop.train(config, tmp_path)
    opened = open_checkpoint(str(tmp_path))
    batch = task_of(config).waves([0, 1], range(10))
    y, _ = opened.model.apply({"params": opened.params}, batch.inputs)
    errors = np.asarray(y - batch.targets)[batch.mask]
    assert summary["loss"] == pytest.approx(np.mean(errors**2), rel=1e-5)
    assert summary["absolute_error"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)
