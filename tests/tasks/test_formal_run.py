"""A run of a formal language from its config file: accuracies are told, and it can be resumed."""

import pathlib
import re

import pytest

from tests.training.test_loop import Stop, stop_at
from xlstm_jax.config import load
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
    "model.dim": 16,
    "task.formal.lengths": (3, 8),
    "task.formal.held_out_lengths": (8, 16),
    "task.formal.held_out_samples": 12,
    "data.context_length": 8,
    "data.batch_size": 8,
    "eval.batch_size": 8,
    "eval.every": 2,
    "checkpoint.every": 2,
    "optimizer.warmup_steps": 2,
    "train.steps": 4,
    "log.every": 1,
    "log.tensorboard": False,
    "mesh.data": 1,
}


def records(workdir, split):
    """What does not depend on the clock, step by step."""
    names = ("step", "loss", "accuracy", "sequence_accuracy", "scaled_accuracy", "tokens")
    return [
        {name: record[name] for name in names if name in record}
        for record in read_records(workdir / "metrics.jsonl")
        if record["split"] == split
    ]


@pytest.mark.slow
def test_parity_is_trained_tells_its_accuracies_and_goes_on_to_the_last_bit(
    tmp_path, monkeypatch, capsys
):
    config = load(str(ROOT / "configs/formal.py:parity-xlstm_1_1"), TINY)
    summary = loop.train(config, tmp_path / "undisturbed")
    printed = capsys.readouterr().out
    trained = records(tmp_path / "undisturbed", "train")
    assert [record["step"] for record in trained] == [1, 2, 3, 4]
    for record in trained:
        assert record["tokens"] == 8  # each sample asks for one answer
        assert record["accuracy"] == record["sequence_accuracy"]
        assert record["accuracy"] * 8 == round(record["accuracy"] * 8)
    held_out = records(tmp_path / "undisturbed", "validation")
    assert [record["step"] for record in held_out] == [2, 4]
    for record in held_out:
        assert record["accuracy"] * 12 == pytest.approx(round(record["accuracy"] * 12))
        assert record["scaled_accuracy"] == pytest.approx(2 * record["accuracy"] - 1)
    assert held_out[-1]["scaled_accuracy"] == summary["scaled_accuracy"]
    assert "parity: trained on lengths 3 to 8, evaluated on 12 samples of 8 to 16" in printed
    assert re.search(
        rf"^held-out loss {summary['loss']:.4f}, accuracy \S+, .*scaled accuracy \S+$",
        printed,
        re.MULTILINE,
    )

    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stop):
            loop.train(config, tmp_path / "stopped")
    loop.train(config, tmp_path / "stopped")
    assert "resumed from step 2" in capsys.readouterr().out
    for split in ("train", "validation"):
        assert records(tmp_path / "stopped", split) == records(tmp_path / "undisturbed", split)
