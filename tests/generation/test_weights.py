"""Weights cast beforehand give the same results to the bit, in less memory; a step reads them where
they lie.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import FAMILIES, VOCABULARY, build, initial_params
from tests.models.conftest import SETTINGS
from xlstm_jax.generation import GREEDY, decode, session
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights, is_cast
from xlstm_jax.models import ModelConfig, build_model, mixers

QUICK = ("mlstm", "slstm", "mlp+mlp")


def assert_a_cast_changes_no_bit(config: ModelConfig, params) -> None:
    """Neither in logits nor in states; and it saves something, but not of every array."""
    model, cast = build_model(config), cast_weights(params, config)
    smaller = [leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cast)]
    assert any(smaller) and not all(smaller)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    apply = jax.jit(model.apply)
    first, second = apply({"params": params}, tokens), apply({"params": cast}, tokens)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_cast_weights_change_no_bit(model_and_params):
    model, params = model_and_params
    assert_a_cast_changes_no_bit(dataclasses.replace(model.config, dtype="bfloat16"), params)


@pytest.mark.parametrize(
    "block",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in (*mixers.names(), "mlp+mlp")
    ],
)
def test_what_a_mixer_names_may_be_cast(block):
    """Of every mixer in the table, also where a block has one twice."""
    mixer, *_ = block.split("+")
    config = ModelConfig(
        vocab_size=VOCABULARY,
        dim=64,
        num_blocks=1,
        blocks=block,
        dtype="bfloat16",
        mixers={mixer: SETTINGS.get(mixer, {})},
    )
    _, params = build(config)
    paths = jax.tree_util.tree_leaves_with_path(params["backbone"])
    assert any(is_cast(path, config) for path, _ in paths)
    assert_a_cast_changes_no_bit(config, params)


def test_a_table_of_positions_and_a_tied_embedding_are_cast_too():
    config = ModelConfig(
        vocab_size=VOCABULARY,
        dim=16,
        num_blocks=1,
        blocks="attention+mlp",
        positions="learned",
        max_positions=16,
        tie_embeddings=True,
        norm_bias=True,
        dtype="bfloat16",
        mixers={"attention": {"theta": None, "bias": True}, "mlp": {"bias": True}},
    )
    _, params = build(config)
    cast = cast_weights(params, config)
    for name in ("embedding", "position_embedding"):
        assert cast[name]["embedding"].dtype == jnp.bfloat16
    assert_a_cast_changes_no_bit(config, params)


def test_nothing_is_cast_where_the_model_computes_in_float32():
    model, params = build(FAMILIES["7b"])
    cast = cast_weights(params, dataclasses.replace(model.config, dtype="float32"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(cast))


@pytest.fixture(scope="module")
def deep():
    """Six blocks whose kernels are large beside all else that a step holds."""
    model = build_model(dataclasses.replace(FAMILIES["7b"], dim=128, num_blocks=6))
    return model, initial_params(model, seed=0)


def compiled_steps(model, params, rows: int, stop_tokens=None):
    start = session.empty_session(model, rows)
    arguments = (start, row_keys(range(rows)), jnp.zeros(rows, bool), 8)
    options = {"space": 8, "sampling": GREEDY, "stop_tokens": stop_tokens}
    return start, decode.lower(model, params, *arguments, **options).compile()


def test_a_step_copies_no_kernels(deep):
    """What it holds beside its arguments and the states is less than one block's up-projection."""
    start, compiled = compiled_steps(*deep, rows=1)
    states = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    kernel = deep[1]["backbone"]["block_0"]["mlp"]["up_projection"]["kernel"]
    assert compiled.memory_analysis().temp_size_in_bytes - states < kernel.nbytes


@pytest.mark.parametrize("stop_tokens", (None, (7,)))
def test_a_step_writes_each_memory_once_in_place(deep, stop_tokens):
    """Of the loop's instructions one per block has a result of C's size: the new C, in the place of
    the old one, which no copy saves.
    """
    start, compiled = compiled_steps(*deep, rows=3, stop_tokens=stop_tokens)
    text = compiled.as_text()
    shape = ",".join(map(str, start.state.blocks["block_0"][0].C.shape))
    bodies = (
        re.search(rf"^%?{re.escape(loop)} .*?^}}", text, re.MULTILINE | re.DOTALL)[0]
        for loop in re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    )
    # a scatter may be a loop as well, which has no memory
    (results,) = filter(
        None, (re.findall(rf" = f32\[(?:1,)?{shape}\]\S* ([\w\-]+)\(", body) for body in bodies)
    )
    assert (
        sorted(opcode for opcode in results if opcode not in ("get-tuple-element", "bitcast"))
        == ["fusion"] * deep[0].config.num_blocks
    )
