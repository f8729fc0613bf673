"""Weights cast beforehand give the same results to the bit, in less memory; blocks that stand apart
give the same, in the same memory.
"""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import build
from xlstm_jax.generation import GREEDY, decode, session, weights
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights, for_steps
from xlstm_jax.models import build_model
from xlstm_jax.models.backbone import join_states, split_blocks
from xlstm_jax.parallel import rows_in_place
from xlstm_jax.training.state import init_params


def test_cast_weights_change_no_bit(model_and_params):
    config = dataclasses.replace(model_and_params[0].config, dtype="bfloat16")
    model, params = build_model(config), model_and_params[1]
    cast = cast_weights(params, config)
    smaller = [leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cast)]
    assert any(smaller) and not all(smaller)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    apply = jax.jit(model.apply)
    first, second = apply({"params": params}, tokens), apply({"params": cast}, tokens)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_nothing_is_cast_where_the_model_computes_in_float32():
    model, params = build("7b")
    cast = cast_weights(params, dataclasses.replace(model.config, dtype="float32"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(cast))


@pytest.fixture(scope="module")
def deep():
    """A stack of which one run is a pattern of two blocks, repeated, and one a single block."""
    config = dataclasses.replace(
        build("paper")[0].config, num_blocks=7, slstm_positions=(1, 3, 5), dim=32
    )
    model = build_model(config)
    return model, jax.tree.map(
        lambda x: x * 2 if x.ndim > 1 else x, jax.jit(lambda: init_params(model, seed=4))()
    )


def write(model, params, start, count=20):
    return decode(
        model,
        params,
        start,
        row_keys(range(2)),
        jnp.zeros(2, bool),
        count,
        space=count,
        sampling=GREEDY,
    )


def test_blocks_apart_write_the_same(deep):
    """Tokens, and every state in its place; from a session that was read and from one that was
    written.
    """
    model, params = deep
    step_model, step_params = for_steps(model, params)
    assert step_model.apart and len(step_model.init_state(2).blocks) == 7 > len(
        model.init_state(2).blocks
    )
    assert jax.eval_shape(lambda: init_params(step_model, 0)) == jax.eval_shape(lambda: step_params)
    start = session.read(model, params, [[3, 1, 2], [5]])
    for _ in range(2):
        (first, tokens, _), (second, again, _) = (
            write(model, params, start),
            write(step_model, step_params, start),
        )
        np.testing.assert_array_equal(tokens, again)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), first, second
        )
        start = second


def test_splitting_is_undone_by_joining(deep):
    state = jax.tree.map(
        lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), deep[0].init_state(2).blocks
    )
    apart = split_blocks(state, deep[0].config, list)
    jax.tree.map(np.testing.assert_array_equal, join_states(apart, deep[0].config), state)


def test_blocks_apart_take_no_memory():
    """Kernels are views of the stacked ones; a step copies none: what it holds beside its arguments
    is less than one block's kernels.
    """
    config = dataclasses.replace(build("7b")[0].config, dim=128, num_blocks=6)
    model = build_model(config)
    params = jax.jit(lambda: init_params(model, seed=0))()
    step_model, step_params = for_steps(model, params)
    whole = params["backbone"]["blocks_0"]["ffn"]["up_projection"]["kernel"]
    for index in range(config.num_blocks):
        part = step_params["backbone"][f"blocks_{index}"]["ffn"]["up_projection"]["kernel"]
        assert part.unsafe_buffer_pointer() == whole.unsafe_buffer_pointer() + index * part.nbytes
    start = session.empty_session(model, 1)
    arguments = (start, row_keys([0]), jnp.zeros(1, bool), 8)
    compiled = decode.lower(step_model, step_params, *arguments, space=8, sampling=GREEDY).compile()
    states = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    assert (
        compiled.memory_analysis().temp_size_in_bytes - states < whole.nbytes // config.num_blocks
    )


def test_views_outlive_what_they_are_views_of():
    """Giving the stacked array away to a program that may write over it leaves its rows as they
    were.
    """
    stacked = jax.jit(lambda: jnp.ones((4, 64, 64)))()
    rows = rows_in_place(stacked)
    assert [row.unsafe_buffer_pointer() - stacked.unsafe_buffer_pointer() for row in rows] == [
        0,
        2**14,
        2**15,
        3 * 2**14,
    ]
    after = jax.jit(lambda x: x - 5, donate_argnums=0)(stacked)
    del stacked
    assert float(after.max()) == -4 and all(
        float(row.min()) == float(row.max()) == 1 for row in rows
    )


@pytest.mark.parametrize("stop_tokens", (None, (7,)))
def test_a_step_writes_each_memory_once_in_place(stop_tokens):
    """Of the loop's instructions one per block has a result of C's size: the new C, in the place of
    the old one, which no copy saves.
    """
    config = dataclasses.replace(build("7b")[0].config, dim=128, num_blocks=6)
    model, params = for_steps(
        build_model(config), jax.jit(lambda: init_params(build_model(config), seed=0))()
    )
    start = session.empty_session(build_model(config), 3)
    arguments = (start, row_keys([0, 1, 2]), jnp.zeros(3, bool), 8)
    text = (
        decode.lower(model, params, *arguments, space=8, sampling=GREEDY, stop_tokens=stop_tokens)
        .compile()
        .as_text()
    )
    (loop,) = re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    body = re.search(rf"^%?{re.escape(loop)} .*?^}}", text, re.MULTILINE | re.DOTALL)[0]
    shape = ",".join(map(str, start.state.blocks["blocks_0"].C.shape[1:]))
    results = re.findall(rf" = f32\[(?:1,)?{shape}\]\S* ([\w\-]+)\(", body)
    assert (
        sorted(opcode for opcode in results if opcode not in ("get-tuple-element", "bitcast"))
        == ["fusion"] * config.num_blocks
    )


@pytest.mark.parametrize(("room", "apart"), ((10**6, True), (10**3, False)))
def test_on_a_gpu_blocks_are_copied_where_there_is_room(monkeypatch, paper_model, room, apart):
    model, params = paper_model
    gpu = types.SimpleNamespace(
        platform="gpu", memory_stats=lambda: {"bytes_limit": 10**6 + room, "bytes_in_use": 10**6}
    )
    monkeypatch.setattr(weights, "only_device", lambda tree: gpu)
    step_model, step_params = for_steps(model, params)
    assert step_model.apart == apart and (step_params is params) != apart


def test_traced_parameters_stay_as_they_are(paper_model):
    model, params = paper_model
    assert not jax.jit(lambda params: jnp.array(for_steps(model, params)[0].apart))(params)
