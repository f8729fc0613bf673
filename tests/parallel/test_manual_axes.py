"""The model inside a `jax.shard_map` of the caller's, and on a mesh that the model can't use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig, build_model

MODEL = build_model(
    ModelConfig(
        dim=16,
        num_blocks=2,
        vocab_size=23,
        blocks="slstm+mlp,mlstm",
        mixers={"slstm": {"num_heads": 2}, "mlstm": {"num_heads": 2}},
    )
)
TOKENS = np.random.default_rng(0).integers(0, 23, (4, 8)).astype(np.int32)
IDS = np.repeat([[0, 1], [3, 3], [2, -1], [0, 5]], 4, axis=1).astype(np.int32)


@pytest.fixture(scope="module")
def variables():
    shapes = nn.meta.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: draw.normal(0.1, 0.3, x.shape).astype(x.dtype), shapes)


def loss(variables, tokens, ids):
    logits, _ = MODEL.apply(variables, tokens, segments=ids)
    return jnp.sum(jnp.square(logits))


@pytest.mark.slow
@pytest.mark.parametrize("manual", [("data", "fsdp"), ("data",)], ids=["all", "some"])
def test_axes_that_a_shard_map_made_manual_are_the_callers(variables, manual):
    """Each device sees rows of its own and adds its loss and gradients to the others'; axes that
    the caller left to the compiler (fsdp, in the second case) are used as ever.
    """
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "tensor"), axis_types=kinds)

    def of_part(variables, tokens, ids):
        return jax.lax.psum(jax.value_and_grad(loss)(variables, tokens, ids), manual)

    spread = jax.shard_map(
        of_part,
        in_specs=(P(), P(manual), P(manual)),
        out_specs=P(),
        axis_names=set(manual),
        check_vma=False,
    )
    expected = jax.jit(jax.value_and_grad(loss))(variables, TOKENS, IDS)
    with jax.set_mesh(mesh):
        found = jax.jit(spread)(variables, TOKENS, IDS)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_explicit_axes_are_refused_naming_what_to_write(variables):
    with (
        jax.set_mesh(jax.make_mesh((8,), ("data",))),
        pytest.raises(
            UserError, match=r"data, .*Explicit.*axis_types=\(jax.sharding.AxisType.Auto"
        ),
    ):
        jax.eval_shape(loss, variables, TOKENS, IDS)
