"""Checkpoints: exact, the latest and the best kept, damage and misfits named."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xlstm_jax.config import CheckpointConfig, Config
from xlstm_jax.errors import UserError
from xlstm_jax.training.checkpoints import Checkpoints, read_params, shape_differences, write_params
from xlstm_jax.training.run_folder import find_run
from xlstm_jax.training.state import TrainState, start_from, with_sharding

OPTIMIZER = optax.adam(0.1)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_state(value=0.0) -> TrainState:
    params = {"layer": {"kernel": jnp.full((40, 30), value), "bias": jnp.arange(3.0)}}
    return start_from(params, OPTIMIZER)._replace(step=jnp.int32(value))


def abstract(tree):
    return with_sharding(tree, HERE)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)))


def save_steps(folder, losses, **keys):
    """A run of len(losses) steps; a loss of None is a step without evaluation."""
    config = CheckpointConfig(**{"every": 1, **keys})
    with Checkpoints(folder, config, len(losses)) as checkpoints:
        for step, loss in enumerate(losses, 1):
            if checkpoints.due(step):
                checkpoints.save(make_state(step), step, {"next_sample": 4 * step}, loss)


def kept(folder):
    return sorted(int(path.name) for path in folder.checkpoints.iterdir())


@pytest.fixture
def folder(tmp_path):
    return find_run(tmp_path)


def test_a_state_comes_back_exactly_with_its_place_in_the_data(folder):
    state = make_state(3.0)
    with Checkpoints(folder, CheckpointConfig(), 3) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, 3, {"next_sample": 12}, 1.5)
    with Checkpoints(folder, CheckpointConfig(), 3) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored, position = checkpoints.restore(abstract(state))
    assert equal(restored, state) and position == {"next_sample": 12}
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_training_may_go_on_while_files_are_written(folder):
    """The step after a save donates the saved state's memory."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = make_state(3.0)
    with Checkpoints(folder, CheckpointConfig(), 3) as checkpoints:
        checkpoints.save(state, 3, {}, None)
        for _ in range(20):
            state = overwrite(state)
    with Checkpoints(folder, CheckpointConfig(), 3) as checkpoints:
        assert equal(checkpoints.restore(abstract(state))[0], make_state(3.0))


def test_every_nth_step_and_the_last_are_due(folder):
    with Checkpoints(folder, CheckpointConfig(every=4), 10) as checkpoints:
        assert [step for step in range(1, 11) if checkpoints.due(step)] == [4, 8, 10]


def test_the_latest_and_the_best_are_kept(folder):
    save_steps(folder, [3.0, 1.0, 2.0, 5.0, None, 4.0], keep_latest=2, keep_best=1)
    assert kept(folder) == [2, 5, 6]


def test_a_resumed_run_remembers_which_was_the_best(folder):
    save_steps(folder, [3.0, 1.0, 2.0], keep_latest=1)
    with Checkpoints(folder, CheckpointConfig(keep_latest=1, every=1), 5) as checkpoints:
        checkpoints.save(make_state(4), 4, {}, 1.5)
        checkpoints.save(make_state(5), 5, {}, 6.0)
    assert kept(folder) == [2, 5]


def test_without_a_best_only_the_latest_are_kept(folder):
    save_steps(folder, [1.0, 2.0, 3.0], keep_latest=1, keep_best=0)
    assert kept(folder) == [3]


@pytest.mark.parametrize("damage", ["data cut short", "item missing", "metadata garbled", "run garbled"])
def test_a_damaged_newest_checkpoint_is_named_with_the_way_on(folder, damage):
    save_steps(folder, [2.0, 1.0])
    newest = folder.checkpoints / "2"
    if damage == "data cut short":
        for path in newest.glob("params/**/d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "item missing":
        shutil.rmtree(newest / "params")
    elif damage == "metadata garbled":
        (newest / "params/_METADATA").write_text("{")
    else:
        (newest / "run/metadata").write_text("{")
    with Checkpoints(folder, CheckpointConfig(every=1), 9) as checkpoints:
        with pytest.raises(UserError, match=r"checkpoints/2' is damaged .*move that folder away.* goes on from step 1"):
            checkpoints.restore(abstract(make_state()))
    shutil.rmtree(newest)
    with Checkpoints(folder, CheckpointConfig(every=1), 9) as checkpoints:
        assert equal(checkpoints.restore(abstract(make_state()))[0], make_state(1))


def test_a_garbled_list_of_losses_is_named(folder):
    save_steps(folder, [2.0])
    (folder.checkpoints / "1/metrics/metrics").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Checkpoints(folder, CheckpointConfig(), 9)


def test_parameters_alone_make_a_folder_to_start_from(folder):
    params = make_state(7.0).params
    write_params(folder.root, Config(), params)
    step, read = read_params(folder.root, abstract(params))
    assert step == 0 and equal(read, params)
    assert folder.read_config() == Config()
    with pytest.raises(UserError, match="holds checkpoints already"):
        write_params(folder.root, Config(), params)


def test_a_certain_steps_parameters_can_be_read(folder):
    save_steps(folder, [1.0, 2.0])
    wanted = abstract(make_state().params)
    assert equal(read_params(folder.root, wanted, step=1)[1], make_state(1).params)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .* there are \[1, 2\]"):
        read_params(folder.root, wanted, step=5)


def test_parameters_of_another_model_are_refused_with_the_first_differences(folder):
    save_steps(folder, [1.0])
    wanted = make_state().params
    wanted["layer"]["kernel"] = jnp.zeros((41, 30))
    wanted["new"] = wanted["layer"].pop("bias")
    with pytest.raises(UserError) as error:
        read_params(folder.root, abstract(wanted))
    for part in (
        "new is missing",
        "layer/bias is not part of the model",
        "layer/kernel has the shape [40, 30] instead of [41, 30]",
    ):
        assert part in str(error.value)


def test_shape_differences_are_empty_for_equal_trees():
    assert shape_differences(make_state().params, abstract(make_state().params)) == []


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        read_params(tmp_path / "nothing", {})


def test_another_format_version_is_named(folder, monkeypatch):
    save_steps(folder, [1.0])
    monkeypatch.setattr("xlstm_jax.training.checkpoints.FORMAT_VERSION", 99)
    with pytest.raises(UserError, match="has the format version 1, this program reads 99"):
        read_params(folder.root, abstract(make_state().params))
