"""A finished run can be made longer where no step's learning rate depends on the run's length;
elsewhere the message says how to train on.
"""

import pytest

from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records

CONSTANT = {"optimizer.schedule": "constant"}


def losses(workdir):
    records = read_records(find_run(workdir).metrics)
    return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.mark.slow
def test_with_a_constant_learning_rate_a_longer_run_is_the_same_to_the_last_bit(tiny, tmp_path):
    loop.train(tiny(CONSTANT | {"train.steps": 5}), tmp_path / "whole")
    loop.train(tiny(CONSTANT | {"train.steps": 3}), tmp_path / "longer")
    loop.train(tiny(CONSTANT | {"train.steps": 5}), tmp_path / "longer")
    assert losses(tmp_path / "longer") == losses(tmp_path / "whole")


def test_a_run_says_how_it_is_made_longer_and_does_so(tiny, tmp_path, no_op_step, capsys):
    loop.train(tiny(CONSTANT), tmp_path)
    assert "# to train longer: the same --workdir and --config.train.steps=12" in (
        capsys.readouterr().out
    )
    loop.train(tiny(CONSTANT | {"train.steps": 12}), tmp_path)
    assert max(losses(tmp_path)) == 12


def test_config_json_has_the_length_that_the_run_has_now_and_the_one_before_is_kept(
    tiny, tmp_path, no_op_step
):
    folder = find_run(tmp_path)
    loop.train(tiny(CONSTANT), tmp_path)
    first = folder.config.read_text()
    loop.train(tiny(CONSTANT | {"log.every": 3}), tmp_path)
    assert folder.config.read_text() == first  # goes on as long as it was to be
    loop.train(tiny(CONSTANT | {"train.steps": 12, "log.every": 3}), tmp_path)
    assert folder.config.read_text() == first.replace('"steps": 6', '"steps": 12')
    assert (tmp_path / "config_6_steps.json").read_text() == first
    with pytest.raises(UserError, match="the run has done 12 steps already"):
        loop.train(tiny(CONSTANT | {"train.steps": 7}), tmp_path)
    assert folder.read_config().train.steps == 12


def test_a_run_can_not_become_shorter_than_it_is(tiny, tmp_path, no_op_step):
    loop.train(tiny(CONSTANT), tmp_path)
    with pytest.raises(UserError, match="train.steps is 4, but the run has done 6 steps already"):
        loop.train(tiny(CONSTANT | {"train.steps": 4}), tmp_path)


@pytest.mark.parametrize(
    "schedule",
    [
        {"optimizer.schedule": "cosine"},
        CONSTANT | {"optimizer.cooldown_steps": 2},
    ],
)
def test_where_the_learning_rate_follows_the_length_the_other_way_is_named(
    tiny, tmp_path, no_op_step, capsys, schedule
):
    loop.train(tiny(schedule), tmp_path)
    way = f"--config.checkpoint.init_from={tmp_path}"
    assert f"# to train longer: another --workdir and {way}" in capsys.readouterr().out
    with pytest.raises(UserError, match="train.steps is 6 there and 12 here") as refusal:
        loop.train(tiny(schedule | {"train.steps": 12}), tmp_path)
    assert str(refusal.value).endswith(f"to train on, begin another run with {way}")


def test_a_decay_that_ends_at_a_step_of_its_own_does_not_follow_the_length(
    tiny, tmp_path, no_op_step
):
    decay = {"optimizer.schedule": "cosine", "optimizer.decay_steps": 6}
    loop.train(tiny(decay), tmp_path)
    loop.train(tiny(decay | {"train.steps": 8}), tmp_path)
    assert max(losses(tmp_path)) == 8
