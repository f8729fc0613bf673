"""The trainer stacks what repeats in a deep model; who looks at the run sees blocks by number."""

import jax
import numpy as np
import pytest

from tests.training.conftest import CONFIG_FILE
from tests.training.test_loop import Stop, losses, stop_at
from xlstm_jax.config import load, task_of
from xlstm_jax.evaluation.run import evaluate_run
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models.stack import Stack
from xlstm_jax.runs.checkpoints import read_params, write_params
from xlstm_jax.runs.params import language_model_params
from xlstm_jax.training import loop
from xlstm_jax.training.state import init_params

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
DEEP = {
    "model.num_blocks": 6,
    "model.blocks": "mlp,slstm",  # blocks that compile fast
    "model.mlstm.num_heads": 4,
    "checkpoint.every": 2,
    "train.steps": 4,
}
NAMES = {*(f"block_{number}" for number in range(6)), "final_norm"}


def by_number(config):
    """Shapes of the parameters as everybody but the trainer has them."""
    return language_model_params(task_of(config).model(), HERE)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Six blocks, trained for four steps: undisturbed, and stopped after three and resumed."""
    folder = tmp_path_factory.mktemp("deep")
    config = load(str(CONFIG_FILE), {"data.path": str(corpus), **DEEP})
    loop.train(config, folder / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stop):
            loop.train(config, folder / "stopped")
    assert max(losses(folder / "stopped")) == 3
    loop.train(config, folder / "stopped")
    return config, folder / "undisturbed", folder / "stopped"


@pytest.mark.slow
def test_the_model_of_this_file_is_stacked_in_training(runs):
    config, _, _ = runs
    assert [run.name for run in Stack(config.model.layout, stacked=True).runs] == ["blocks_0_to_5"]


@pytest.mark.slow
def test_a_checkpoint_has_blocks_by_number(runs):
    config, undisturbed, _ = runs
    step, params = read_params(undisturbed, by_number(config))
    assert step == 4 and params["backbone"].keys() == NAMES
    [moments] = (undisturbed / "checkpoints/4/optimizer").glob("_METADATA")
    told = moments.read_text()
    assert "block_5" in told and "blocks_0_to_5" not in told


@pytest.mark.slow
def test_it_goes_on_to_the_last_bit(runs):
    config, undisturbed, stopped = runs
    assert losses(stopped) == losses(undisturbed)
    assert losses(stopped, "validation") == losses(undisturbed, "validation")
    same(*(read_params(run, by_number(config))[1] for run in (undisturbed, stopped)))


@pytest.mark.slow
def test_the_opened_checkpoint_is_the_model_that_was_trained(runs):
    config, undisturbed, _ = runs
    opened = open_checkpoint(str(undisturbed))
    assert opened.step == 4 and opened.params["backbone"].keys() == NAMES
    tokens = np.arange(12, dtype=np.int32)[None] + 97
    logits, _ = opened.model.apply({"params": opened.params}, tokens)
    assert logits.shape == (1, 12, 320) and np.isfinite(logits).all()
    expected = losses(undisturbed, "validation")[4]
    assert evaluate_run(undisturbed).loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_it_starts_from_parameters_by_number_and_keeps_them(runs, tiny, tmp_path, no_op_step):
    _, undisturbed, _ = runs
    config = tiny({**DEEP, "checkpoint.init_from": str(undisturbed)})
    loop.train(config, tmp_path)
    same(*(read_params(run, by_number(config))[1] for run in (undisturbed, tmp_path)))


@pytest.mark.slow
def test_the_loss_of_given_parameters_is_that_of_the_model_by_number(tiny, tmp_path):
    """Each block gets its own parameters: the first step's loss is taken before any update."""
    config = tiny({**DEEP, "train.steps": 2})
    task = task_of(config)
    model = task.model()
    params = init_params(task, model, seed=7)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = structure.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
    write_params(tmp_path / "given", config, params)
    total, weight = task.sums(model, {"params": params}, task.batch(0, 0, range(4)))["loss"]

    loop.train(
        tiny({**DEEP, "train.steps": 2, "checkpoint.init_from": str(tmp_path / "given")}),
        tmp_path / "run",
    )
    assert losses(tmp_path / "run")[1] == pytest.approx(float(total / weight), rel=1e-6)
