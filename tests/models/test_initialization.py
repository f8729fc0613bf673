"""Initial parameters are the authors' (paper.md of the references, 1.4), and initial behaviour
follows from them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose

from xlstm_jax.models import ModelConfig, build_model

DIM, BLOCKS, HEADS = 128, 6, 4
CONFIG = ModelConfig(dim=DIM, num_blocks=BLOCKS, vocab_size=512, blocks="mlstm,2*slstm+mlp,3*mlstm")


@pytest.fixture(scope="module")
def params():
    variables = jax.jit(build_model(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return nn.meta.unbox(variables)["params"]


SMALL, WANG = (2 / (5 * DIM)) ** 0.5, 2 / BLOCKS / DIM**0.5


@pytest.mark.parametrize(
    ("path", "std"),
    [
        ("embedding/embedding", SMALL),
        ("lm_head/kernel", SMALL),
        ("backbone/block_3/mlstm/up_projection/kernel", SMALL),
        ("backbone/block_3/mlstm/query/kernel", SMALL),
        ("backbone/block_3/mlstm/key/kernel", SMALL),
        ("backbone/block_3/mlstm/value/kernel", SMALL),
        ("backbone/block_3/mlstm/down_projection/kernel", WANG),
        ("backbone/block_3/mlstm/conv/kernel", 0.5 / 3**0.5),
        ("backbone/block_3/mlstm/conv/bias", 0.5 / 3**0.5),
        ("backbone/block_3/mlstm/input_gate/bias", 0.1),
        ("backbone/block_1/slstm/gates/kernel", SMALL),
        ("backbone/block_1/mlp/up_projection/kernel", SMALL),
        ("backbone/block_1/mlp/down_projection/kernel", WANG),
        ("backbone/block_1/slstm/recurrent_kernel", 0.0),
        ("backbone/block_3/mlstm/input_gate/kernel", 0.0),
        ("backbone/block_3/mlstm/forget_gate/kernel", 0.0),
    ],
)
def test_spread(params, path, std):
    leaf = params
    for name in path.split("/"):
        leaf = leaf[name]
    few = leaf.size < 100
    assert_allclose(np.std(leaf), std, rtol=0.6 if few else 0.1)
    assert abs(np.mean(leaf)) <= (std if few else 0.1 * std)


def test_equal_blocks_start_differently(params):
    kernels = [params["backbone"][f"block_{n}"]["mlstm"]["up_projection"]["kernel"] for n in (3, 4)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_forget_gates_of_the_mlstm_start_between_3_and_6(params):
    for number in (0, 3, 4, 5):
        bias = params["backbone"][f"block_{number}"]["mlstm"]["forget_gate"]["bias"]
        assert_allclose(bias, [3, 4, 5, 6])


def test_forget_gates_of_the_slstm_fall_from_5_to_minus_7_more_slowly_in_later_blocks(params):
    unit = np.linspace(0, 1, DIM // HEADS)
    for block in (1, 2):
        bias = np.asarray(params["backbone"][f"block_{block}"]["slstm"]["bias"])
        assert bias.shape == (4, HEADS, DIM // HEADS)
        expected = 5 - 12 * unit ** (0.3 + 1.3 * block / (BLOCKS - 1))
        assert_allclose(bias[1], np.tile(expected, (HEADS, 1)), rtol=1e-5, atol=1e-5)
        assert np.abs(bias[[0, 2, 3]]).max() == 0


def test_norms_and_skips_start_at_one(params):
    flat = jax.tree_util.tree_leaves_with_path(params)
    ones = [leaf for path, leaf in flat if path[-1].key in ("scale", "skip")]
    # of each mLSTM norm, skip, head norm; of each sLSTM two norms and a head norm; the last norm
    assert len(ones) == 4 * 3 + 2 * 3 + 1
    assert all((leaf == 1).all() for leaf in ones)


def test_the_first_loss_is_that_of_a_uniform_guess(params):
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, 512)
    logits, _ = jax.jit(build_model(CONFIG).apply)({"params": params}, tokens)
    loss = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.roll(tokens, -1, axis=1)[..., None], axis=-1
    ).mean()
    assert_allclose(loss, np.log(512), rtol=0.05)


def test_the_7b_starts_with_closed_input_gates_and_half_open_output_gates():
    config = ModelConfig(dim=32, num_blocks=2, norm="rms", blocks="mlstm_7b+mlp")
    params = nn.meta.unbox(
        jax.jit(build_model(config).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    )["params"]
    block = params["backbone"]["block_0"]["mlstm_7b"]
    assert (block["input_gate"]["bias"] == -10).all()
    assert (block["output_gate"]["kernel"] == 0).all()
