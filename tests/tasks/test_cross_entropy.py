"""The loss in parts of the tokens is the loss of all of them, in value, gradients and everything
but memory.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ModelConfig
from xlstm_jax.models import build_model
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.mesh import MeshConfig
from xlstm_jax.tasks.cross_entropy import (
    LOGITS_BYTES,
    cross_entropy_sum,
    projected_cross_entropy_sum,
    token_parts,
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


def of_all_logits(y, kernel, targets, mask, cap=None):
    """The definition."""
    logits = y @ kernel
    return cross_entropy_sum(logits if cap is None else cap * jnp.tanh(logits / cap), targets, mask)


def close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(
    ("parts", "multiple"), [(1, 1), (2, 1), (3, 1), (4, 1), (21, 1), (32, 1), (3, 4), (2, 16)]
)
def test_value_and_gradients_are_those_of_all_logits(cap, parts, multiple):
    """21 tokens in 2, 4 or 32 parts, or in parts of 4 or 16, and then 22 columns too: some are
    filled up.
    """
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw()

        def loss(y, kernel):
            return 0.3 * projected_cross_entropy_sum(
                y, kernel, targets, mask, cap=cap, parts=parts, multiple=multiple
            )

        def expected(y, kernel):
            return 0.3 * of_all_logits(y, kernel, targets, mask, cap)

        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(y, kernel)
        close(found, jax.jit(jax.value_and_grad(expected, (0, 1)))(y, kernel), 1e-12)
        close(jax.jit(loss)(y, kernel), found[0], 1e-14)


@pytest.mark.parametrize(
    ("mesh", "rows"), [((8, 1, 1, 1), 8), ((1, 2, 2, 2), 4), ((2, 1, 2, 2), 3)], ids=str
)
def test_a_mesh_changes_nothing_and_sums_the_kernels_gradient_once(mesh, rows):
    """Also where the rows (3) and the columns (22, filled up to 24) can't be dealt out evenly."""
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw(batch=rows, time=10)

        def loss(y, kernel):
            return projected_cross_entropy_sum(
                y, kernel, targets, mask, cap=2.0, parts=3, multiple=4
            )

        expected = jax.jit(
            jax.value_and_grad(
                lambda y, kernel: of_all_logits(y, kernel, targets, mask, 2.0), (0, 1)
            )
        )(y, kernel)
        with jax.set_mesh(make_mesh(MeshConfig(*mesh))):
            lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(y, kernel)
            # before anything goes on from the gradient of y: no device keeps a sum of its own
            assert re.search(r"optimization_barrier .*tensor<5x22xf64>", lowered.as_text())
            program = lowered.compile()
            close(program(y, kernel), expected, 1e-12)
        in_loops, once = program.as_text().split("ENTRY")
        of_the_kernel = r"f64\[(1,)?5,(12|24)\]\S* all-reduce\("
        assert re.search(of_the_kernel, once) or rows == 3
        assert not re.search(of_the_kernel, in_loops)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_other_derivatives_are_those_of_all_logits(cap):
    """Forward mode, and forward over reverse and reverse over forward mode: the Hessian's product
    with a direction.
    """
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw()
        direction = draw(seed=1)[:2]

        def derivatives(loss):
            def slope(*inputs):
                return jax.jvp(loss, inputs, direction)[1]

            gradient = jax.grad(loss, (0, 1))
            return (
                slope(y, kernel),
                jax.linearize(loss, y, kernel)[1](*direction),
                jax.jvp(gradient, (y, kernel), direction)[1],
                jax.grad(slope, (0, 1))(y, kernel),
            )

        def in_parts(y, kernel):
            return projected_cross_entropy_sum(y, kernel, targets, mask, cap=cap, parts=3)

        found = jax.jit(lambda: derivatives(in_parts))()
        expected = jax.jit(
            lambda: derivatives(lambda y, kernel: of_all_logits(y, kernel, targets, mask, cap))
        )()
        close(found, expected, 1e-11)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_what_is_masked_out_may_be_nan(cap):
    """It counts as if it weren't there: no gradient is NaN, that of what is masked out is 0."""
    y, kernel, targets, mask = draw(dtype=jnp.float32)

    def loss(y, kernel, targets):
        return projected_cross_entropy_sum(y, kernel, targets, mask, cap=cap, parts=4)

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected = gradients(y, kernel, targets)
    found = gradients(jnp.where(mask[..., None], y, jnp.nan), kernel, jnp.where(mask, targets, -1))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not found[1][0][~mask].any() and found[1][0][mask].any()


@pytest.mark.parametrize("cap", [None, 30.0])
def test_extreme_logits(cap):
    """Of 10,000 and more, some of them the targets': float32 as near to float64 as its logits."""
    with jax.enable_x64(True):
        y, kernel, targets, mask = draw()
        y = 1e3 * y

        def loss(y, kernel):
            return projected_cross_entropy_sum(y, kernel, targets, mask, cap=cap, parts=4)

        expected = jax.value_and_grad(
            lambda y, kernel: of_all_logits(y, kernel, targets, mask, cap), (0, 1)
        )(y, kernel)
        close(jax.jit(jax.value_and_grad(loss, (0, 1)))(y, kernel), expected, 1e-12)
        narrow = jax.jit(jax.value_and_grad(loss, (0, 1)))(
            y.astype(jnp.float32), kernel.astype(jnp.float32)
        )
        assert np.isfinite(narrow[0]) and all(np.isfinite(x).all() for x in narrow[1])
        np.testing.assert_allclose(narrow[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_bfloat16_is_rounded_where_the_logits_and_their_gradient_are_and_nowhere_else(cap):
    """4,096 tokens: the kernel's gradient is summed up in float32, over the parts too."""
    y, kernel, targets, mask = draw(8, 512, 16, 40, dtype=jnp.bfloat16)
    kernel = kernel.astype(jnp.float32)
    kept = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (y, kernel)]

    def loss(y, kernel):
        return projected_cross_entropy_sum(y, kernel, targets, mask, cap=cap, parts=16) / 4096

    found = jax.jit(jax.value_and_grad(loss, (0, 1)))(y, kernel)
    expected = jax.jit(
        jax.value_and_grad(
            lambda y, kernel: of_all_logits(y, kernel, targets, mask, cap) / 4096, (0, 1)
        )
    )(*kept)
    assert found[1][0].dtype == jnp.bfloat16 and found[1][1].dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    for got, want in zip(found[1], expected[1], strict=True):
        error = np.linalg.norm(np.float32(got) - want) / np.linalg.norm(want)
        assert error < 2**-7


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
        kernel, mask = model.apply(params, method="head_kernel"), jnp.ones(tokens.shape, bool)
        return projected_cross_entropy_sum(y, kernel, tokens, mask, cap=30.0, parts=parts)

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
    """4,096 tokens, 32,768 entries: all float32 logits are 512 MiB, in 16 parts 32 MiB, beside the
    kernel's gradient of 8 MiB.
    """
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
            return projected_cross_entropy_sum(y, kernel, targets, mask, parts=parts)

        return (
            jax.jit(jax.grad(loss, (0, 1)))
            .lower(y, kernel, targets, mask)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporaries(1) > 2**29
    assert temporaries(16) < 2**27


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
    assert token_parts(logits, devices) == (parts, 1)


@pytest.mark.parametrize(
    ("kind", "devices", "parts"),
    [("NVIDIA H100", 1, (6, 64)), ("NVIDIA H200", 1, (4, 64)), ("NVIDIA H100", 8, (1, 64)),
     ("GeForce", 1, (64, 1))],
)  # fmt: skip
def test_a_gpu_takes_as_few_parts_as_its_memory_allows(kind, devices, parts):
    """65,536 tokens, 50,304 entries; 6 parts of 10,944 of them."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        assert token_parts(65_536 * 50_304, devices) == parts
