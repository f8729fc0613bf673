"""A bad step is skipped as if its batch had never been there: parameters, optimizer and window stay
as they were.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests.training.test_step import config, ragged_batch, stepper

GOOD = [ragged_batch(seed=seed) for seed in range(12)]


def poisoned(setup, batches, at):
    """Runs the steps; the batches in `at` have tokens that no embedding knows: their loss is not a
    number.
    """
    step, state = stepper(setup)
    skipped = []
    for number, batch in enumerate(batches):
        if number in at:
            batch = batch._replace(tokens=np.full_like(batch.tokens, 99))
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"]) == (number not in at)
        skipped.append((int(metrics["skipped"]), int(metrics["skipped_in_a_row"])))
    return state, skipped


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def setup_with(**train):
    made = config(**train)
    return dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, warmup_steps=4))


@pytest.mark.parametrize(
    "at", [{0}, {3}, {8}, {5, 6, 7}], ids=["first", "in the warm-up", "later", "a burst"]
)
def test_the_run_equals_one_that_never_saw_the_batch(at):
    """Also the learning rate goes on where it was, so that no step of the schedule is lost."""
    state, skipped = poisoned(setup_with(), GOOD, at)
    clean, _ = poisoned(
        setup_with(), [batch for number, batch in enumerate(GOOD) if number not in at], set()
    )
    same(
        (state.params, state.opt_state, *state.guard[:2]),
        (clean.params, clean.opt_state, *clean.guard[:2]),
    )
    assert int(state.guard.skipped) == len(at) and int(state.step) == len(GOOD)
    assert skipped[max(at)] == (len(at), len(at)) and skipped[-1][1] == 0


def with_all_wrong(batch):
    """Targets that the model finds unlikely after it has learnt the good ones."""
    return batch._replace(targets=(batch.targets + 5) % 11)


def learnt(spike_deviations):
    """A run that has seen one batch again and again, and then another one."""
    setup = config(spike_deviations=spike_deviations, spike_window=8)
    step, state = stepper(
        dataclasses.replace(
            setup, optimizer=dataclasses.replace(setup.optimizer, learning_rate=0.1)
        )
    )
    for _ in range(40):
        state, metrics = step(state, GOOD[0])
    assert metrics["skipped"] == 0
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, with_all_wrong(GOOD[0]))
    return before, after, metrics


def test_a_spike_is_skipped_and_does_not_enter_the_window():
    before, after, metrics = learnt(6.0)
    assert metrics["skipped"] == 1
    same(
        (after.params, after.opt_state, after.guard.losses),
        (before.params, before.opt_state, before.guard.losses),
    )


def test_without_a_threshold_a_spike_is_learnt_from():
    before, after, metrics = learnt(None)
    assert metrics["skipped"] == 0 and after.guard.accepted == 41
    assert after.guard.losses[40 % 8] == metrics["loss"]


def test_no_spike_is_seen_before_the_window_is_full():
    setup = config(spike_deviations=0.001, spike_window=8)
    step, state = stepper(setup)
    for number in range(8):
        state, metrics = step(state, with_all_wrong(GOOD[0]) if number == 5 else GOOD[0])
    assert metrics["skipped"] == 0


def test_losses_that_are_all_the_same_make_no_spike_of_the_next():
    """The deviation is taken as at least 0.01 nats."""
    frozen = config(spike_deviations=6.0, spike_window=4)
    step, state = stepper(
        dataclasses.replace(
            frozen, optimizer=dataclasses.replace(frozen.optimizer, learning_rate=0.0)
        )
    )
    for _ in range(8):
        state, metrics = step(state, GOOD[1])
    assert metrics["skipped"] == 0 and np.ptp(np.asarray(state.guard.losses)) < 1e-6
