"""Attention as a mixer: the sum written out in NumPy, its cache, positions, types, meshes.

What every mixer keeps is tested for all of them at once (test_registry.py), the op itself in
tests/kernels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose, assert_array_equal

from tests.models.conftest import CONFIGS
from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.config import MeshConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models import Backbone, ModelConfig, build_model
from xlstm_jax.models.config import check_model
from xlstm_jax.models.mixer import Depth, Parts
from xlstm_jax.models.mixers.attention import MIXER, AttentionConfig
from xlstm_jax.parallel import make_mesh

LLAMA, GPT = CONFIGS["llama"], CONFIGS["gpt"]
TOKENS = np.random.default_rng(2).integers(0, 23, (2, 19)).astype(np.int32)
KINDS = {"llama": LLAMA, "gpt": GPT}
both = pytest.mark.parametrize("name", KINDS)


def written_out(x, params, settings: AttentionConfig):
    """The mixer in float64, token by token and head by head."""

    def projected(name, x):
        y = x @ np.asarray(params[name]["kernel"], np.float64)
        return y + np.asarray(params[name]["bias"], np.float64) if settings.bias else y

    batch, time, dim = x.shape
    heads, groups = settings.num_heads, settings.groups
    size = dim // heads
    q, k, v = (
        projected(name, x).reshape(batch, time, -1, size) for name in ("query", "key", "value")
    )
    if settings.theta is not None:  # pairs (j, j + size/2) as complex numbers, turned
        half = size // 2
        angle = np.arange(time)[:, None] * settings.theta ** (-np.arange(half) / half)
        turn = np.exp(1j * angle)[None, :, None]

        def turned(y):
            z = (y[..., :half] + 1j * y[..., half:]) * turn
            return np.concatenate([z.real, z.imag], axis=-1)

        q, k = turned(q), turned(k)
    y = np.zeros((batch, time, heads, size))
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                group = h // (heads // groups)
                scores = k[b, : t + 1, group] @ q[b, t, h] / size**0.5
                weights = np.exp(scores - scores.max())
                y[b, t, h] = weights / weights.sum() @ v[b, : t + 1, group]
    return projected("out_projection", y.reshape(batch, time, dim))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_heads": 4},
        {"num_heads": 4, "num_groups": 2, "theta": 50.0},
        {"num_heads": 4, "num_groups": 1, "bias": True},
        {"num_heads": 2, "theta": None, "bias": True},
    ],
    ids=str,
)
def test_the_mixer_is_the_sum_written_out(settings):
    settings = AttentionConfig(**settings)
    module = MIXER.module(settings, dim=16, depth=Depth(0, 2))
    x = np.random.default_rng(0).normal(size=(2, 9, 16))
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    assert shapes["key"]["kernel"].shape == (16, 16 * settings.groups // settings.num_heads)
    y, state = jax.jit(module.apply)({"params": params}, x.astype(np.float32))
    assert state is None
    assert_allclose(y, written_out(x, params, settings), rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("stacked", [False, True])
def test_a_state_without_a_cache_is_refused(name, stacked):
    """A call without a state returns no keys and values: nothing can follow it."""
    model = build_model(KINDS[name], stacked=stacked)

    def two_calls():
        params = model.init(jax.random.key(0), TOKENS)
        _, state = model.apply(params, TOKENS[:, :7])
        return model.apply(params, TOKENS[:, 7:], state)

    with pytest.raises(ValueError, match="no memory of 'attention'.*cache_length=N"):
        jax.eval_shape(two_calls)
    with pytest.raises(ValueError, match="'attention' grows with the text; give .* cache_length"):
        model.init_state(2)


@pytest.mark.slow
@both
def test_a_token_beyond_the_cache_is_not_a_number(name, random_variables, jitted):
    """The ninth and later ones of a text with room for eight, however they come; padding takes no
    room, and the next document has it all again.
    """
    model, variables = jitted(KINDS[name]), random_variables(KINDS[name])
    ids = np.zeros((2, 19), np.int32)
    ids[0, 3:5] = -1
    ids[:, 12:] = 1
    whole, _ = model.apply(variables, TOKENS, segments=ids)
    lost = np.zeros((2, 19), bool)
    lost[0, 10:12] = lost[1, 8:12] = True
    for cuts in ([0, 19], [0, 9, 10, 19]):
        state = model.init_state(2, cache_length=8)
        parts = []
        for start, end in zip(cuts, cuts[1:], strict=False):
            part, state = model.apply(
                variables, TOKENS[:, start:end], state, segments=ids[:, start:end]
            )
            parts.append(part)
        logits = np.concatenate(parts, axis=1)
        assert_array_equal(np.isnan(logits).all(-1), lost)
        seen = ~lost & (ids >= 0)
        assert_allclose(logits[seen], whole[seen], rtol=2e-4, atol=2e-4)
        assert state.position.tolist() == [7, 7]


def test_learned_positions_are_those_in_the_document(random_variables, jitted):
    """They begin again with a document and count no padding."""
    variables = random_variables(GPT)
    ids = np.array([[0, 0, 0, -1, 0, 1, 1, 1], [5, -1, -1, 5, 7, 8, 8, -1]], np.int32)
    positions = [[0, 1, 2, 3, 3, 0, 1, 2], [0, 1, 1, 1, 0, 0, 1, 2]]
    tokens = TOKENS[:, :8]
    embedding = variables["params"]["embedding"]["embedding"]
    learned = variables["params"]["position_embedding"]["embedding"]
    x = embedding[tokens] + learned[np.array(positions)]
    expected, _ = jax.jit(Backbone(GPT).apply)(
        {"params": variables["params"]["backbone"]}, x, segments=ids
    )
    got, state = jitted(GPT).apply(variables, tokens, segments=ids)
    real = ids >= 0
    assert_allclose(got[real], (expected @ embedding.T)[real], rtol=1e-4, atol=1e-4)
    assert state.position.tolist() == [3, 2]


def test_a_token_without_a_learned_position_is_not_a_number(random_variables, jitted):
    tokens = np.tile(TOKENS, (1, 4))[:, :70]  # 64 positions
    logits, _ = jitted(GPT).apply(random_variables(GPT), tokens)
    assert np.isnan(logits[:, 64:]).all()


def loss_of(config, params, tokens, ids, stacked=False):
    model = build_model(config, stacked=stacked)
    logits, _ = model.apply({"params": params}, tokens, segments=ids)
    chosen = jax.nn.log_softmax(logits)[..., 0]
    return -jnp.sum(jnp.where(ids >= 0, chosen, 0)) / ids.size


IDS = np.where(np.arange(19) < 6, 0, np.where(np.arange(19) < 16, 1, -1))[None].repeat(8, 0)


def test_a_mesh_changes_no_step_with_a_cache(random_variables, jitted):
    config = dataclasses.replace(LLAMA, num_blocks=1)
    model, variables = build_model(config), random_variables(config)
    whole, _ = jitted(config).apply(variables, TOKENS)
    mesh = make_mesh(MeshConfig(2, 1, 2, 1))
    with jax.set_mesh(mesh):
        apply = jax.jit(model.apply)
        state = model.init_state(2, cache_length=24)
        first, state = apply(variables, TOKENS[:, :12], state)
        second, state = apply(variables, TOKENS[:, 12:13], state)
    assert_allclose(np.concatenate([first, second], 1), whole[:, :13], rtol=2e-4, atol=2e-4)
    assert state.position.tolist() == [13, 13]


@pytest.mark.slow
@both
def test_bfloat16_is_near_float32_and_a_cache_of_it_loses_nothing(name, random_variables):
    config = dataclasses.replace(KINDS[name], dtype="bfloat16")
    variables = random_variables(KINDS[name], 0.1)
    model = build_model(config)
    apply = jax.jit(model.apply)
    exact, _ = jax.jit(build_model(KINDS[name]).apply)(variables, TOKENS)
    logits, _ = apply(variables, TOKENS)
    assert logits.dtype == jnp.float32
    assert_allclose(logits, exact, rtol=0, atol=4e-2 * np.abs(exact).max())

    def in_steps(dtype):
        state = model.init_state(2, dtype, cache_length=19)
        first, state = apply(variables, TOKENS[:, :18], state)
        second, state = apply(variables, TOKENS[:, 18:], state)
        keys = state.blocks["block_0"][0].keys
        assert keys.dtype == dtype
        return np.concatenate([first, second], axis=1)

    assert_array_equal(in_steps(jnp.bfloat16), in_steps(jnp.float32))
    assert_allclose(in_steps(jnp.bfloat16), exact, rtol=0, atol=4e-2 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "stacked"), [("block", True), ("dots", False)])
def test_remat_changes_no_gradient(remat, stacked):
    def gradient(config):
        variables = nn.meta.unbox(
            build_model(config, stacked=stacked).init(jax.random.key(0), TOKENS)
        )
        loss = functools.partial(loss_of, config, stacked=stacked)
        return jax.jit(jax.grad(loss))(variables["params"], TOKENS, IDS[:2])

    got, expected = (gradient(dataclasses.replace(LLAMA, remat=kind)) for kind in (remat, "none"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(), 1))


def test_flops_are_those_counted_by_hand():
    """Llama of the paper's 1.3B: 6 per parameter of a product, and half of the T x T scores."""
    dim, blocks, hidden, heads, time = 2048, 24, 5504, 16, 2048
    config = ModelConfig(
        dim=dim,
        num_blocks=blocks,
        vocab_size=50304,
        blocks="attention+mlp",
        norm="rms",
        mixers={"attention": {"num_heads": heads}, "mlp": {"activation": "silu", "factor": 8 / 3}},
    )
    kernels = 50304 * dim + blocks * (4 * dim**2 + 3 * dim * hidden)
    pairs = time * (time + 1) // 2  # of a query and a key that it sees
    scores_and_sums = 2 * (2 * dim * pairs) * blocks / time
    flops = training_flops_per_token(build_model(config), time)
    assert flops == 6 * kernels + 3 * scores_and_sums
    grouped = dataclasses.replace(
        config, mixers=dict(config.mixers) | {"attention": AttentionConfig(heads, num_groups=4)}
    )
    saved = blocks * 2 * dim * (dim - dim // 4)  # of keys and values
    assert flops - training_flops_per_token(build_model(grouped), time) == 6 * saved


@pytest.mark.parametrize(
    ("settings", "parts", "message"),
    [
        ({"num_heads": 3}, Parts(), "model.dim is 16, which does not fall into .*num_heads 3"),
        ({"num_heads": 16}, Parts(), "into heads of an even size, which rotary positions need"),
        ({"num_groups": 3}, Parts(), "num_groups is 3, which does not divide .*num_heads 4"),
        ({"num_groups": 2}, Parts(tensor=4), "mesh.tensor is 4, .* the 2 groups"),
        ({}, Parts(sequence=2), "mesh.sequence is 2, but the model has attention"),
    ],
)
def test_what_can_not_work_together_is_refused(settings, parts, message):
    mixers = {"attention": {"num_heads": 4} | settings}
    config = ModelConfig(dim=16, blocks="attention", mixers=mixers)
    with pytest.raises(UserError, match=message):
        check_model(config, parts)
    check_model(ModelConfig(dim=16, blocks="attention", mixers={"attention": {"num_heads": 4}}))
    check_model(
        ModelConfig(
            dim=16, blocks="attention", mixers={"attention": {"num_heads": 16, "theta": None}}
        )
    )
