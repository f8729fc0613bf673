"""The two forms of a stack: blocks one by one, and equal ones stacked. One model, one result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from xlstm_jax.models import Backbone, ModelConfig, build_model
from xlstm_jax.models.stack import Stack

TOKENS = jax.random.randint(jax.random.key(2), (2, 9), 0, 23)
SMALL = {"mlstm": {"num_heads": 2}, "slstm": {"num_heads": 2}}
# a run of one block, runs of pairs, single blocks
CONFIG = ModelConfig(
    dim=16,
    vocab_size=23,
    num_blocks=9,
    blocks="mlstm,slstm+mlp,mlstm,slstm+mlp,slstm+mlp,4*mlstm",
    mixers=SMALL,
)


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Backbone(CONFIG, stacked=True).stack


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_blocks_are_named_by_number_where_nothing_is_stacked(random_variables):
    names = random_variables(CONFIG)["params"]["backbone"].keys()
    assert names == {"final_norm", *(f"block_{number}" for number in range(9))}


def test_there_and_back(stack, random_variables):
    variables = random_variables(CONFIG)
    stacked = stack.stack(variables)
    assert {run.name for run in stack.runs} <= stacked["params"]["backbone"].keys()
    assert any(run.repeats > 1 for run in stack.runs)
    equal(stack.by_number(stacked), variables)


def test_what_an_optimizer_keeps_is_converted_with_the_parameters(stack, random_variables):
    params = random_variables(CONFIG)["params"]
    state = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    stacked = stack.stack(state)
    moments = optax.tree.get(stacked, "mu")["backbone"]
    assert {run.name for run in stack.runs} <= moments.keys()
    equal(stack.by_number(stacked), state)


@pytest.mark.slow
def test_both_forms_compute_the_same(stack, random_variables):
    variables = random_variables(CONFIG)
    one_by_one, stacked = build_model(CONFIG), build_model(CONFIG, stacked=True)
    logits, state = jax.jit(one_by_one.apply)(variables, TOKENS)
    same, same_state = jax.jit(stacked.apply)(stack.stack(variables), TOKENS)
    assert_allclose(same, logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), stack.by_number(same_state), state
    )
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        for tree in (stacked.init_state(2), same_state)
    ]
    assert shapes[0] == shapes[1]


def test_a_small_stack_is_never_stacked():
    layout = ModelConfig(num_blocks=4).layout
    assert all(run.repeats == 1 for run in Stack(layout, stacked=True).runs)


def test_a_tree_without_blocks_is_left_alone(stack):
    tree = {"a": jnp.ones(3), "b": (1, {"c": 2})}
    equal(stack.by_number(tree), tree)
