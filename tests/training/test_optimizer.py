"""Learning-rate schedules against closed forms, the decay mask, AdamW against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ModelConfig, OptimizerConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models import build_model
from xlstm_jax.runs.params import language_model_params
from xlstm_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


def rates(steps, at, **keys):
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, **keys), steps)
    return [float(schedule(step)) for step in at]


def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step():
    got = rates(1000, [1, 50, 100], warmup_steps=100, schedule="constant")
    np.testing.assert_allclose(got, [0.02, 1.0, 2.0], rtol=1e-6)


def test_cosine_ends_at_the_final_fraction_and_stays_there():
    got = rates(200, [100, 150, 200], warmup_steps=100, decay_steps=150, final_fraction=0.1)
    np.testing.assert_allclose(got, [2.0, 0.2, 0.2], rtol=1e-6)
    [quarter] = rates(200, [125], warmup_steps=100, decay_steps=200, final_fraction=0.1)
    np.testing.assert_allclose(
        quarter, 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))), rtol=1e-6
    )


def test_restarts_are_four_cosines_of_one_length_behind_one_warm_up():
    at = [50, 100, 125, 199, 200, 250, 300, 399, 400, 450, 500, 600]
    got = rates(600, at, warmup_steps=100, decay_steps=500, final_fraction=0.1, schedule="restarts")
    cosine = rates(200, range(100, 200), warmup_steps=100, decay_steps=200, final_fraction=0.1)
    expected = [1.0, 2.0, cosine[25], cosine[99], 2.0, cosine[50], 2.0, cosine[99], 2.0, cosine[50]]
    np.testing.assert_allclose(got, [*expected, 0.2, 0.2], rtol=1e-5)


def test_the_papers_15b_run_stops_before_the_end_of_its_decay():
    got = rates(28_170, [750, 28_170], warmup_steps=750, decay_steps=30_000)
    progress = (28_170 - 750) / (30_000 - 750)
    np.testing.assert_allclose(
        got, [2.0, 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))], rtol=1e-5
    )


def test_decay_ends_where_the_cool_down_starts_by_default():
    got = rates(120, [100, 110, 120], warmup_steps=10, cooldown_steps=20, final_fraction=0.5)
    np.testing.assert_allclose(got, [1.0, 0.5, 0.0], rtol=1e-6)


def test_exponential_decay_of_the_7b_run_goes_on_until_its_cool_down():
    keys = dict(
        schedule="exponential", warmup_steps=3_000, decay_steps=500_000, cooldown_steps=7_000
    )
    got = rates(550_000, [3_000, 500_000, 543_000, 546_500, 550_000], **keys)
    at_cool_down = 2.0 * 0.1 ** (540_000 / 497_000)
    np.testing.assert_allclose(got, [2.0, 0.2, at_cool_down, at_cool_down / 2, 0.0], rtol=1e-4)


def test_a_decay_that_ends_in_the_warm_up_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.decay_steps is 5.*optimizer\.warmup_steps 10"):
        make_schedule(OptimizerConfig(warmup_steps=10, decay_steps=5), 100)


def test_an_exponential_decay_to_nothing_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.final_fraction"):
        make_schedule(
            OptimizerConfig(warmup_steps=1, schedule="exponential", final_fraction=0.0), 100
        )


@pytest.mark.parametrize("first", ["mlstm", "mlstm_7b+mlp", "attention+mlp"])
def test_weight_decay_reaches_kernels_and_nothing_else(first):
    config = ModelConfig(dim=64, num_blocks=2, blocks=f"{first},slstm+mlp")
    mask = decay_mask(language_model_params(build_model(config)))
    named = {
        "/".join(entry.key for entry in path): on
        for path, on in jax.tree_util.tree_flatten_with_path(mask)[0]
    }
    assert {name for name, on in named.items() if on} == {
        name for name in named if name.rsplit("/", 1)[-1] == "kernel"
    }
    assert not named["embedding/embedding"] and not named[_one(named, "recurrent_kernel")]
    assert named["lm_head/kernel"] and named[_one(named, "down_projection/kernel")]


def _one(names, ending):
    return next(name for name in names if name.endswith(ending))


def test_an_update_is_adamw_on_the_clipped_gradient_with_the_rate_of_its_step():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="constant", warmup_steps=4, clip_norm=1.0, eps=1e-5
    )
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    gradient = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}  # norm 5, clipped to 1
    state = optimizer.init(params)
    expected = {name: np.asarray(value, np.float64) for name, value in params.items()}
    m = {name: 0.0 for name in params}
    v = {name: 0.0 for name in params}
    for step in (1, 2, 3):
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name in expected:
            g = np.asarray(gradient[name], np.float64) / 5
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            direction = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.95**step)) + 1e-5)
            decay = 0.1 * expected[name] if name == "kernel" else 0.0
            expected[name] = expected[name] - 0.1 * step / 4 * (direction + decay)
        for name in expected:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_without_a_clip_norm_the_gradient_is_left_alone():
    config = OptimizerConfig(
        clip_norm=None,
        beta1=0.0,
        beta2=0.0,
        eps=1e6,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.0,
    )
    optimizer = make_optimizer(config, lambda step: 1e6)
    params = {"kernel": jnp.zeros(1)}
    updates, _ = optimizer.update({"kernel": jnp.array([300.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-300.0], rtol=1e-3)
