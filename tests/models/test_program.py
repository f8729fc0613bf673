"""What is compiled: one scan per run of equal blocks, states only where they are asked for."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose

from xlstm_jax.models import Backbone, ModelConfig, build_model
from xlstm_jax.models.stack import Stack

TOKENS = jax.random.randint(jax.random.key(2), (2, 12), 0, 23)


PAPER_7_1 = (
    "3*mlstm,slstm+mlp,mlstm,slstm+mlp,mlstm,slstm+mlp,32*mlstm,"
    "slstm+mlp,mlstm,slstm+mlp,mlstm,slstm+mlp,3*mlstm"
)


def program_size(num_blocks: int) -> int:
    """Length of the text of the training program for loss and gradient."""
    config = ModelConfig(
        dim=16, vocab_size=23, num_blocks=num_blocks, mixers={"mlstm": {"num_heads": 2}}
    )
    model = build_model(config, stacked=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    return len(str(jax.make_jaxpr(jax.grad(lambda v: model.apply(v, TOKENS)[0].sum()))(variables)))


def test_48_blocks_are_a_program_of_the_size_of_6():
    assert program_size(48) <= 1.01 * program_size(6)


def test_the_papers_7_to_1_compiles_7_blocks():
    """Its 13 runs of equal blocks are 3 runs of mLSTM blocks and two of the same three pairs."""
    runs = Stack(ModelConfig(num_blocks=48, blocks=PAPER_7_1).layout, stacked=True).runs
    assert sum(len(run.pattern) for run in runs) == 7
    assert sorted(run.repeats for run in runs if len(run.pattern) == 2) == [3, 3]


@pytest.mark.parametrize(
    "blocks", [PAPER_7_1, "slstm+mlp,46*mlstm,slstm+mlp", "mlstm", "7*mlstm,slstm+mlp", "slstm+mlp"]
)
def test_the_runs_are_the_stack_in_its_order(blocks):
    layout = ModelConfig(num_blocks=48, blocks=blocks).layout
    found = [
        (run.number(repeat, offset), block)
        for run in Stack(layout, stacked=True).runs
        for repeat in range(run.repeats)
        for offset, block in enumerate(run.pattern)
    ]
    assert found == list(enumerate(layout))


def test_states_that_nobody_uses_leave_no_trace():
    """The compiled forward pass stacks the blocks' memories up only where they are asked for."""
    model = build_model(
        ModelConfig(dim=16, num_blocks=6, vocab_size=23, mixers={"mlstm": {"num_heads": 2}}),
        stacked=True,
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    memories = f"f32[6,{len(TOKENS)},2,32,32]"

    def program(call):
        return jax.jit(call).lower(variables, TOKENS).compile().as_text()

    assert memories in program(lambda variables, tokens: model.apply(variables, tokens))
    assert memories not in program(lambda variables, tokens: model.apply(variables, tokens)[0])


def test_a_pattern_repeats_until_the_stack_is_full():
    mlstm, slstm = ("mlstm",), ("slstm", "mlp")
    config = ModelConfig(num_blocks=8, blocks="3*mlstm, slstm + mlp")
    assert config.layout == (mlstm, mlstm, mlstm, slstm) * 2


@pytest.mark.slow
def test_soft_caps_bound_the_logits(random_variables):
    config = ModelConfig(
        dim=16, num_blocks=1, vocab_size=23, logit_soft_cap=0.25, mixers={"mlstm": {"num_heads": 2}}
    )
    logits, _ = build_model(config).apply(random_variables(config, scale=2.0), TOKENS)
    assert 0.2 < np.abs(logits).max() <= 0.25


@pytest.mark.slow
def test_the_backbone_alone_is_the_language_models(config, random_variables):
    params = random_variables(config)["params"]
    model = build_model(config)
    x = params["embedding"]["embedding"][TOKENS]
    if config.positions == "learned":
        x = x + params["position_embedding"]["embedding"][: TOKENS.shape[1]]
    y, _ = jax.jit(Backbone(config).apply)({"params": params["backbone"]}, x)
    expected, _ = jax.jit(lambda v: model.apply(v, TOKENS, method="hidden"))({"params": params})
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_parameters_carry_logical_axis_names():
    variables = jax.eval_shape(
        build_model(ModelConfig(blocks="mlstm,slstm+mlp,2*mlstm")).init, jax.random.key(0), TOKENS
    )
    boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(len(box.names) == len(box.value.shape) for box in boxes)
