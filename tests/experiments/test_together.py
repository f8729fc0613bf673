"""Runs that are trained in one program are the runs that they would be alone."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from xlstm_jax import config_files
from xlstm_jax.config import load, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.experiments import __main__ as command
from xlstm_jax.experiments import rows as results
from xlstm_jax.experiments import running
from xlstm_jax.experiments.grid import Run, groups_of, part_of, runs_of
from xlstm_jax.experiments.together import make_joint_step, of_number, train_together
from xlstm_jax.interrupts import EXIT_PREEMPTED
from xlstm_jax.paths import locked
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training import preemption
from xlstm_jax.training.loop import train
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import init_state
from xlstm_jax.training.step import make_train_step

FILE = str(pathlib.Path(__file__).with_name("tiny_grid.py"))
EXPERIMENT = config_files.experiment(FILE, "small")
RUNS = [Run("parity", "small", 8, rate, seed) for rate in (0.1, 0.01) for seed in (0, 1)]


def config_of(run, **keys):
    return running.config_of(EXPERIMENT, FILE, run, keys)


def test_groups_differ_in_rate_and_seed_alone_and_parts_share_groups():
    runs = runs_of(EXPERIMENT)
    groups = groups_of(runs, 3)
    assert [run for group in groups for run in group] == runs
    assert [len(group) for group in groups] == [3, 1] * 4
    assert all(len({(run.cell, run.model, run.dim) for run in group}) == 1 for group in groups)
    assert groups_of(runs, 1) == [(run,) for run in runs]
    assert part_of(groups, (2, 3)) == [groups[1], groups[4], groups[7]]


TOLD = ("loss", "learning_rate", "grad_norm", "update_norm")
XLSTM = {"model.blocks": "mlstm,slstm+mlp", "model.num_blocks": 2}
XLSTM |= {"model.mlstm.num_heads": 1, "model.slstm.num_heads": 1}


@pytest.mark.parametrize(
    ("side_by_side", "blocks"),
    [
        (True, {}),
        pytest.param(False, {}, marks=pytest.mark.slow),
        pytest.param(True, XLSTM, marks=pytest.mark.slow),
    ],
)
def test_the_joint_step_is_the_single_ones(side_by_side, blocks):
    """Losses and parameters of 2 rates x 2 seeds over three steps, with dropout's own keys."""
    configs = [config_of(run, **blocks, **{"model.dropout": 0.2}) for run in RUNS]
    task = task_of(configs[0])
    model = task.model(stacked=True)
    batches = [task.batch(0, step, range(8)) for step in range(3)]
    begun, alone = [], []
    for config in configs:
        schedule = make_schedule(config.optimizer, config.train.steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        state = jax.jit(functools.partial(init_state, task, model, optimizer, config.train))()
        begun.append(jax.tree.map(np.asarray, state))
        step, told = make_train_step(task, model, optimizer, schedule, config.train), []
        for batch in batches:
            state, metrics = step(state, batch)
            told.append([float(metrics[name]) for name in TOLD])
        alone.append((state.params, told))
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *begun)
    joint, told = make_joint_step(task, model, configs, side_by_side=side_by_side), []
    for number, batch in enumerate(batches):
        states, metrics = joint(states, batch, np.int32(number + 1))
        told.append(np.stack([metrics[name] for name in TOLD], axis=-1))
    for number, (params, expected) in enumerate(alone):
        np.testing.assert_allclose(np.stack(told)[:, number], expected, rtol=1e-4)
        # AdamW divides a gradient by its own size: of one near 0, rounding is seen in the parameter
        # (three updates of up to 0.1 each)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            of_number(states.params, number),
            params,
        )
    assert len({expected[-1][0] for _, expected in alone}) == 4  # no two runs are one
    # a run that is ahead of the others waits for them
    before = jax.tree.map(np.asarray, states)
    states, _ = joint(states, batches[0], np.int32(3))
    jax.tree.map(np.testing.assert_array_equal, states, before)


def rows_of(folder, run):
    """By set and metric, the value; and what all rows have in common, but the time."""
    rows = results.read(folder / run.name)
    values = {(row["set"], row["metric"]): row["value"] for row in rows}
    common = {k: v for k, v in rows[0].items() if k not in ("seconds", "set", "metric", "value")}
    return common, values


@pytest.mark.slow
def test_the_rows_are_those_of_single_runs_wherever_the_group_goes_on(tmp_path, monkeypatch):
    """Of the group one run was begun alone, one diverges, and the others are stopped once."""
    arguments = ["--cells=parity", "--models=small", "--learning_rates=0.1,0.01,1e38", "--seeds=1"]
    arguments += ["--config.train.max_skipped=1"]

    statuses = []

    def call(name, *more):
        where = f"--workdir={tmp_path / name}"
        statuses.append(command.main(["experiments", FILE, where, *arguments, *more]))
        return tmp_path / name / "tiny_grid" / "small"

    runs = [Run("parity", "small", 8, rate, 0) for rate in (0.1, 0.01, 1e38)]
    alone = call("alone")
    config = config_of(runs[1], **{"train.max_skipped": 1})
    begun = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(begun, tmp_path / "together" / "tiny_grid" / "small" / runs[1].name)
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Preemption, "reached", lambda self, step: step == 3)
        call("together", "--together=3")
    together = call("together", "--together=3")
    assert statuses == [0, EXIT_PREEMPTED, 0]
    for run in runs:
        (head, values), (expected_head, expected) = rows_of(together, run), rows_of(alone, run)
        assert head == expected_head and values == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert rows_of(together, runs[2])[1]["diverged", "loss"] != 0
    written = (together / runs[0].name / "metrics.jsonl").read_text().splitlines()
    assert sum('"split": "train"' in line for line in written) == 3  # 1, and the stages' last steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"log.wandb": "mine"}, "log.wandb is 'mine', which runs that are trained together"),
        ({"model.remat": "auto"}, "model.remat is 'auto', which runs that are trained together"),
        ({"mesh.data": 2}, "several runs on one device, and there are 2"),
    ],
)
def test_what_a_group_cannot_do_is_refused_before_anything_is_written(tmp_path, overrides, message):
    configs = {tmp_path / run.name: config_of(run, **overrides) for run in RUNS[:2]}
    with pytest.raises(UserError, match=message):
        train_together(configs)
    assert not list(tmp_path.iterdir())


def test_runs_that_differ_elsewhere_are_not_one_program(tmp_path):
    configs = {tmp_path / "a": config_of(RUNS[0]), tmp_path / "b": load(f"{FILE}:parity-large")}
    with pytest.raises(ValueError, match="runs of one program differ in .*model.blocks"):
        train_together(configs)


def test_a_run_that_another_job_trains_is_left_to_it(tmp_path):
    configs = {tmp_path / run.name: config_of(run) for run in RUNS[:2]}
    busy = find_run(tmp_path / RUNS[1].name)
    busy.root.mkdir()
    with locked(busy.lock, "busy"), pytest.raises(UserError, match="another process is training"):
        train_together(configs)
    assert not busy.metrics.exists() and not busy.checkpoints.exists()
