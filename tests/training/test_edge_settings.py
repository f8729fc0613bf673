"""Settings at the edge of what may be given train all the same: float16, nearly everything dropped,
hardly any gradient let through, a batch, a context and a number of steps of one.
"""

import jax
import numpy as np
import pytest

from xlstm_jax.evaluation.run import evaluate_run
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import read_params
from xlstm_jax.runs.params import language_model_params
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records

pytestmark = pytest.mark.slow  # each trains

FEW = {"train.steps": 3, "eval.max_tokens": 200, "checkpoint.every": 1}
ALL = ("loss", "grad_norm")


def trained(config, workdir):
    """Loss and norm of the gradient of every step, and the last held-out loss; all are numbers."""
    held_out = loop.train(config, workdir)["loss"]
    records = [r for r in read_records(workdir / "metrics.jsonl") if r["split"] == "train"]
    rows = np.array([[record[name] for name in ALL] for record in records])
    assert len(rows) == config.train.steps
    assert np.isfinite(rows).all() and np.isfinite(held_out)
    return *rows.T, held_out


@pytest.fixture
def ordinary(tiny, tmp_path_factory, request):
    """The run without any of these settings, made once."""
    made = request.module.__dict__
    if "MADE" not in made:
        made["MADE"] = trained(tiny(FEW), tmp_path_factory.mktemp("ordinary"))
    return made["MADE"]


def test_float16_is_near_float32(tiny, tmp_path, ordinary):
    low = trained(tiny(FEW | {"model.dtype": "float16"}), tmp_path)
    for found, expected in zip(low, ordinary, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-2)
        assert not np.array_equal(found, expected)


def test_with_a_dropout_of_99_percent_the_whole_model_is_evaluated(tiny, tmp_path, ordinary):
    losses, _, held_out = trained(tiny(FEW | {"model.dropout": 0.99}), tmp_path)
    assert losses[0] != ordinary[0][0]
    assert evaluate_run(tmp_path, step=3).loss == pytest.approx(held_out, rel=1e-6)


def test_a_tiny_bound_of_the_gradient_leaves_the_model_as_it_was(tiny, tmp_path, ordinary):
    """The norm that is shown is that before clipping."""
    bound = {
        "optimizer.clip_norm": 1e-30,
        "optimizer.weight_decay": 0.0,
        "checkpoint.keep_latest": 3,
    }
    config = tiny(FEW | bound)
    _, norms, _ = trained(config, tmp_path)
    assert norms[0] == pytest.approx(ordinary[1][0], rel=1e-6)
    shapes = language_model_params(
        build_model(config.model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    first, last = (read_params(tmp_path, shapes, step)[1] for step in (1, 3))
    # by 1e-30 over Adam's eps of 1e-8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-22), first, last)


def test_a_batch_a_context_and_a_step_of_one(tiny, tmp_path):
    ones = ("data.batch_size", "data.context_length", "train.steps", "eval.batch_size",
            "optimizer.warmup_steps", "train.accumulation_steps")  # fmt: skip
    trained(tiny(dict.fromkeys(ones, 1) | {"eval.max_tokens": 5}), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
