"""Checkpoints: exact, the latest and the best kept, damage and misfits named."""

import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xlstm_jax.config import CheckpointConfig, Config, TrainConfig
from xlstm_jax.errors import UserError
from xlstm_jax.training.checkpoints import Checkpoints, read_params, shape_differences, write_params
from xlstm_jax.training.run_folder import find_run
from xlstm_jax.training.state import TrainState, start_from, with_sharding

OPTIMIZER = optax.adam(0.1)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_state(value=0.0) -> TrainState:
    params = {"layer": {"kernel": jnp.full((40, 30), value), "bias": jnp.arange(3.0)}}
    return start_from(params, OPTIMIZER, TrainConfig())._replace(step=jnp.int32(value))


def abstract(tree):
    return with_sharding(tree, HERE)


def equal(a, b):
    return all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)
        )
    )


def run_config(steps, **keys) -> Config:
    return Config(train=TrainConfig(steps=steps), checkpoint=CheckpointConfig(**keys))


def save_steps(folder, losses, **keys):
    """A run of len(losses) steps; a loss of None is a step without evaluation."""
    with Checkpoints(folder, run_config(len(losses), **{"every": 1, **keys})) as checkpoints:
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
    with Checkpoints(folder, run_config(3)) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, 3, {"next_sample": 12}, 1.5)
    with Checkpoints(folder, run_config(3)) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored, position, _ = checkpoints.restore(abstract(state))
    assert equal(restored, state) and position == {"next_sample": 12}
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_training_may_go_on_while_files_are_written(folder):
    """The step after a save donates the saved state's memory."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = make_state(3.0)
    with Checkpoints(folder, run_config(3)) as checkpoints:
        checkpoints.save(state, 3, {}, None)
        for _ in range(20):
            state = overwrite(state)
    with Checkpoints(folder, run_config(3)) as checkpoints:
        assert equal(checkpoints.restore(abstract(state))[0], make_state(3.0))


def test_every_nth_step_and_the_last_are_due(folder):
    with Checkpoints(folder, run_config(10, every=4)) as checkpoints:
        assert [step for step in range(1, 11) if checkpoints.due(step)] == [4, 8, 10]


def test_the_latest_and_the_best_are_kept(folder):
    save_steps(folder, [3.0, 1.0, 2.0, 5.0, None, 4.0], keep_latest=2, keep_best=1)
    assert kept(folder) == [2, 5, 6]


def test_a_resumed_run_remembers_which_was_the_best(folder):
    save_steps(folder, [3.0, 1.0, 2.0], keep_latest=1)
    with Checkpoints(folder, run_config(5, keep_latest=1, every=1)) as checkpoints:
        checkpoints.save(make_state(4), 4, {}, 1.5)
        checkpoints.save(make_state(5), 5, {}, 6.0)
    assert kept(folder) == [2, 5]


def test_without_a_best_only_the_latest_are_kept(folder):
    save_steps(folder, [1.0, 2.0, 3.0], keep_latest=1, keep_best=0)
    assert kept(folder) == [3]


def damage_checkpoint(newest, damage):
    if damage == "data cut short":
        for path in newest.glob("params/**/d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "item missing":
        shutil.rmtree(newest / "params")
    elif damage == "metadata garbled":
        (newest / "params/_METADATA").write_text("{")
    elif damage == "run garbled":
        (newest / "run/metadata").write_text("{")
    elif damage == "run no object":
        (newest / "run/metadata").write_text("17")
    elif damage == "loss no number":
        (newest / "metrics/metrics").write_text('{"loss": "low"}')
    elif damage == "loss empty":
        (newest / "metrics/metrics").write_text("")
    elif damage == "listing":
        (newest / "_CHECKPOINT_METADATA").write_text("17")
    else:
        (newest / "metrics/metrics").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [
        "data cut short", "item missing", "metadata garbled", "run garbled", "run no object",
        "loss garbled", "loss no number", "loss empty", "listing",
    ],
)  # fmt: skip
def test_a_damaged_newest_checkpoint_is_reported_set_aside_and_the_one_before_is_used(
    folder, damage, capsys
):
    save_steps(folder, [2.0, 1.0])
    damage_checkpoint(folder.checkpoints / "2", damage)
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        restored, position, step = checkpoints.restore(abstract(make_state()))
        assert step == 1 and position == {"next_sample": 4} and equal(restored, make_state(1))
        checkpoints.save(make_state(2), 2, {}, None)
    assert "checkpoint of step 2 is passed over" in capsys.readouterr().err
    assert kept(folder) == [1, 2] and [
        path.name for path in folder.damaged_checkpoints.iterdir()
    ] == ["2"]


def test_a_half_written_checkpoint_is_none(folder):
    save_steps(folder, [2.0, 1.0])
    (folder.checkpoints / "2").rename(folder.checkpoints / "2.orbax-checkpoint-tmp")
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[2] == 1
        checkpoints.save(make_state(2), 2, {}, None)
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        assert equal(checkpoints.restore(abstract(make_state()))[0], make_state(2))


@pytest.mark.parametrize("file", ["metrics/metrics", "_CHECKPOINT_METADATA", "run/metadata"])
def test_what_a_power_loss_left_empty_in_an_unfinished_checkpoint_stops_nothing(folder, file):
    save_steps(folder, [2.0, 1.0])
    unfinished = folder.checkpoints / "2.orbax-checkpoint-tmp"
    (folder.checkpoints / "2").rename(unfinished)
    (unfinished / file).write_bytes(b"")
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[2] == 1
        checkpoints.save(make_state(2), 2, {}, None)
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[2] == 2


def test_what_has_no_steps_name_is_left_alone(folder):
    save_steps(folder, [2.0])
    (folder.checkpoints / "mine").mkdir()
    (folder.checkpoints / "notes.txt").write_text("mine")
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[2] == 1
    assert (folder.checkpoints / "mine").is_dir() and (folder.checkpoints / "notes.txt").is_file()


def test_a_folder_that_can_not_be_made_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run' can't be written to: Not a directory"):
        Checkpoints(find_run(tmp_path / "file" / "run"), run_config(1))


def test_where_no_checkpoint_can_be_read_the_run_does_not_start_anew_by_itself(folder, capsys):
    save_steps(folder, [2.0, 1.0])
    for step in (1, 2):
        damage_checkpoint(folder.checkpoints / str(step), "data cut short")
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        with pytest.raises(
            UserError,
            match=r"no checkpoint of .* can be read any more; they are in damaged_checkpoints",
        ):
            checkpoints.restore(abstract(make_state()))
    assert len(list(folder.damaged_checkpoints.iterdir())) == 2


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 KB; the writes themselves fail, as on a full disk."""
    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )

    def fill(full):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]) if full else before)

    yield fill
    fill(False)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_reported_training_goes_on_and_the_old_checkpoints_survive(
    folder, full_disk, capsys
):
    draw = jax.random.normal(jax.random.key(0), (100, 100))
    large = [make_state(step)._replace(params={"kernel": step * draw}) for step in range(4)]
    large = [state._replace(opt_state=OPTIMIZER.init(state.params)) for state in large]
    with Checkpoints(folder, run_config(9, every=1)) as checkpoints:
        checkpoints.save(large[1], 1, {}, None)
        checkpoints.finish()
        full_disk(True)
        checkpoints.save(large[2], 2, {}, None)
        checkpoints.finish()
        full_disk(False)
        assert "step 2: the disk is full, so this step is NOT saved" in capsys.readouterr().err
        assert kept(folder) == [1]
        assert equal(checkpoints.restore(abstract(large[0]))[0], large[1])
        checkpoints.save(large[3], 3, {}, None)
    assert kept(folder) == [1, 3]


def test_any_other_error_of_an_asynchronous_save_is_raised(folder, monkeypatch):
    checkpoints = Checkpoints(folder, run_config(9, every=1))

    def broken(*_, **__):
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError, match="the network is gone"), checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", broken)
        checkpoints.save(make_state(1), 1, {}, None)


def test_every_nth_checkpoint_is_kept_for_good(folder):
    save_steps(folder, [None] * 7, keep_latest=1, keep_best=0, keep_every=3)
    assert kept(folder) == [3, 6, 7]


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
    with pytest.raises(UserError, match="has the format version 2, this program reads 99"):
        read_params(folder.root, abstract(make_state().params))
