"""Calls that hand the state on give what one call over the whole sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

TOKENS = jax.random.randint(jax.random.key(2), (2, 19), 0, 23)


def test_prefill_and_steps_equal_one_forward(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    logits, last_state = model.apply(variables, TOKENS, model.beginning(2))
    parts, state = [], model.beginning(2)
    for start, end in [(0, 11), *((t, t + 1) for t in range(11, 19))]:
        part, state = model.apply(variables, TOKENS[:, start:end], state)
        parts.append(part)
    assert_allclose(jnp.concatenate(parts, axis=1), logits, rtol=2e-4, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, last_state)


def test_empty_state_is_no_state(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    without, _ = model.apply(variables, TOKENS)
    empty = model.init_state(len(TOKENS))
    given, state = model.apply(variables, TOKENS, empty)
    assert_allclose(given, without, rtol=1e-5, atol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(empty)
    for ours, theirs in zip(jax.tree.leaves(empty), jax.tree.leaves(state), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def random_layout(key: int, batch: int, time: int) -> np.ndarray:
    """Documents of random lengths with padding strewn in."""
    rng = np.random.default_rng(key)
    ids = np.cumsum(rng.random((batch, time)) < 0.2, axis=1)
    return np.where(rng.random((batch, time)) < 0.2, -1, ids).astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_cut_anywhere_with_documents_and_padding(config, random_variables, jitted, seed):
    model, variables = jitted(config), random_variables(config)
    ids = random_layout(seed, *TOKENS.shape)
    whole, _ = model.apply(variables, TOKENS, segments=ids)
    cut = 5 + 4 * seed
    first, state = model.apply(
        variables, TOKENS[:, :cut], model.beginning(2), segments=ids[:, :cut]
    )
    second, _ = model.apply(variables, TOKENS[:, cut:], state, segments=ids[:, cut:])
    token = ids >= 0
    assert_allclose(
        jnp.concatenate([first, second], axis=1)[token], whole[token], rtol=2e-4, atol=2e-4
    )


@pytest.mark.slow
def test_a_call_of_padding_only_changes_no_state(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    three = jnp.full((2, 7), 3)
    _, state = model.apply(variables, TOKENS[:, :7], model.beginning(2), segments=three)
    _, after = model.apply(variables, TOKENS[:, 7:12], state, segments=jnp.full((2, 5), -1))
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.slow
def test_left_padded_prompt_gives_what_the_unpadded_gives(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    plain, _ = model.apply(variables, TOKENS)
    padded = jnp.pad(TOKENS, ((0, 0), (5, 0)))
    ids = jnp.pad(jnp.zeros_like(TOKENS), ((0, 0), (5, 0)), constant_values=-1)
    logits, _ = model.apply(variables, padded, segments=ids)
    assert_allclose(logits[:, 5:], plain, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_states_are_not_changed_in_place(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    _, state = model.apply(variables, TOKENS[:, :7], model.beginning(2))
    before = jax.tree.map(np.array, state)
    model.apply(variables, TOKENS[:, 7:], state)
    jax.tree.map(np.testing.assert_array_equal, state, before)
