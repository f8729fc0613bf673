"""The loss over parts of the vocabulary is the loss over all of it, in value, gradients and
everything but memory.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ModelConfig
from xlstm_jax.models import build_model
from xlstm_jax.tasks.cross_entropy import (
    LOGITS_BYTES,
    cross_entropy_sum,
    projected_cross_entropy_sum,
    vocabulary_parts,
)


def draw(batch=3, time=7, dim=5, vocabulary=22, seed=0, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), 4)
    y, kernel = (
        jax.random.normal(keys[0], (batch, time, dim), dtype),
        3 * jax.random.normal(keys[1], (dim, vocabulary), dtype),
    )
    return (
        y,
        kernel,
        jax.random.randint(keys[2], (batch, time), 0, vocabulary),
        jax.random.bernoulli(keys[3], 0.7, (batch, time)),
    )


def capped(y, kernel):
    return 2 * jnp.tanh(y @ kernel / 2)


@pytest.mark.parametrize("head", [jnp.matmul, capped])
@pytest.mark.parametrize(
    ("parts", "multiple"), [(2, 1), (3, 1), (4, 1), (22, 1), (32, 1), (3, 4), (2, 16)]
)
def test_value_and_gradients_are_those_of_the_whole(head, parts, multiple):
    """22 entries in 3, 4 or 32 parts, or of columns of 4 or 16: some are filled up, in some there
    is nothing.
    """
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw()

        def loss(y, kernel, parts):
            return projected_cross_entropy_sum(
                head, y, kernel, targets, mask, parts=parts, multiple=multiple
            )

        gradients = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
        whole, in_parts = gradients(y, kernel, 1), gradients(y, kernel, parts)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), in_parts, whole
        )
        np.testing.assert_allclose(
            whole[0], cross_entropy_sum(head(y, kernel), targets, mask), rtol=1e-14
        )


@pytest.mark.parametrize("head", [jnp.matmul, capped])
def test_other_derivatives_are_those_of_the_whole(head):
    """Forward mode, and forward over reverse and reverse over forward mode: the Hessian's product
    with a direction.
    """
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw()
        direction = draw(seed=1)[:2]

        @functools.partial(jax.jit, static_argnums=0)
        def derivatives(parts):
            def loss(y, kernel):
                return projected_cross_entropy_sum(head, y, kernel, targets, mask, parts=parts)

            def slope(*inputs):
                return jax.jvp(loss, inputs, direction)[1]

            gradient = jax.grad(loss, (0, 1))
            return (
                slope(y, kernel),
                jax.linearize(loss, y, kernel)[1](*direction),
                jax.jvp(gradient, (y, kernel), direction)[1],
                jax.grad(slope, (0, 1))(y, kernel),
            )

        whole, in_parts = derivatives(1), derivatives(3)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), in_parts, whole
        )


def test_what_is_masked_out_may_be_nan():
    y, kernel, targets, mask = draw(dtype=jnp.float32)
    y = jnp.where(mask[..., None], y, jnp.nan)
    value, dy = jax.jit(
        jax.value_and_grad(
            lambda y: projected_cross_entropy_sum(jnp.matmul, y, kernel, targets, mask, parts=4)
        )
    )(y)
    assert np.isfinite(value) and np.isfinite(dy[mask]).all()


def test_extreme_logits_stay_finite():
    y, kernel, targets, mask = draw(dtype=jnp.float32)
    loss = jax.jit(
        jax.value_and_grad(
            lambda y: projected_cross_entropy_sum(jnp.matmul, y, kernel, targets, mask, parts=4)
        )
    )
    value, gradient = loss(1e4 * y)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_language_models_own_head_in_parts(tied):
    config = ModelConfig(
        vocab_size=50,
        dim=16,
        num_blocks=1,
        tie_embeddings=tied,
        logit_soft_cap=30.0,
        mixers={"mlstm": {"num_heads": 2}},
    )
    model = build_model(config)
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 50)
    params = jax.jit(lambda: nn.meta.unbox(model.init(jax.random.key(1), tokens)))()

    def loss(params, parts):
        y, _ = model.apply(params, tokens, method="hidden")
        kernel = model.apply(params, method="head_kernel")
        return projected_cross_entropy_sum(
            model.logits, y, kernel, tokens, jnp.ones(tokens.shape, bool), parts=parts
        )

    expected = cross_entropy_sum(
        model.apply(params, tokens)[0], tokens, jnp.ones(tokens.shape, bool)
    )
    gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    whole, in_parts = gradients(params, 1), gradients(params, 8)
    np.testing.assert_allclose(whole[0], expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), in_parts, whole
    )


def test_temporaries_shrink_with_the_parts():
    """4,096 tokens, 32,768 entries: all float32 logits are 512 MiB."""
    y, kernel = (
        jax.ShapeDtypeStruct((4, 1024, 64), jnp.float32),
        jax.ShapeDtypeStruct((64, 32768), jnp.float32),
    )
    targets, mask = (
        jax.ShapeDtypeStruct((4, 1024), jnp.int32),
        jax.ShapeDtypeStruct((4, 1024), jnp.bool_),
    )

    def temporaries(parts):
        def loss(y, kernel, targets, mask):
            return projected_cross_entropy_sum(jnp.matmul, y, kernel, targets, mask, parts=parts)

        return (
            jax.jit(jax.grad(loss, (0, 1)))
            .lower(y, kernel, targets, mask)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporaries(1) > 2**29
    assert temporaries(16) < 2**28


@pytest.mark.parametrize(
    ("logits", "devices", "parts"),
    [
        (1, 1, 1),
        (LOGITS_BYTES // 4, 1, 1),
        (LOGITS_BYTES // 4 + 1, 1, 2),
        (LOGITS_BYTES, 1, 4),
        (LOGITS_BYTES, 4, 1),
    ],
)
def test_there_are_as_many_parts_as_keep_a_devices_logits_within_the_limit(logits, devices, parts):
    assert vocabulary_parts(logits, devices) == (parts, 1)


@pytest.mark.parametrize(
    ("kind", "devices", "parts"),
    [("NVIDIA H100", 1, (6, 64)), ("NVIDIA H200", 1, (4, 64)), ("NVIDIA H100", 8, (1, 64)),
     ("GeForce", 1, (64, 1))],
)  # fmt: skip
def test_a_gpu_takes_as_few_parts_as_its_memory_allows(kind, devices, parts):
    """65,536 tokens, 50,304 entries; 6 parts of 8,384 columns fill nothing up."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        assert vocabulary_parts(65_536 * 50_304, devices) == parts
