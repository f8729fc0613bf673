"""The cache of attention: pieces of any length equal the whole; what does not fit is loud."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionState, attention, cache_room
from pallas_kernels.segments import last_segment
from pallas_kernels.testing import cases
from tests.kernels.attention_judge import B, G, K, V, inputs, judge, seen_by
from tests.kernels.test_attention import FORMS, cast, weights_of


def run(function, *arguments):
    return jax.jit(function, compiler_options=cases.QUICK_COMPILE)(*arguments)


def in_pieces(x, cuts, state, documents=None, **options):
    """Outputs of all pieces and the state after the last, the state and the last id handed on."""
    outputs = []
    previous = None if documents is None else jnp.asarray(documents["previous_segment"])
    for start, stop in zip(cuts, cuts[1:], strict=False):
        q, k, v = (x[name][:, start:stop] for name in ("q", "k", "v"))
        segments = {}
        if documents is not None:
            ids = jnp.asarray(documents["segment_ids"][:, start:stop])
            segments = {"segment_ids": ids, "previous_segment": previous}
            previous = last_segment(ids, previous)
        y, state = attention(q, k, v, state, **segments, **options)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=1), state


@pytest.mark.parametrize("form", ("reference", "blockwise"))
@pytest.mark.parametrize("packed", (False, True), ids=("one-document", "packed"))
def test_a_sequence_may_be_cut_anywhere(form, packed):
    """Pieces, single tokens among them, equal the judge's whole in values and gradients; cuts fall
    on borders and into padding.
    """
    time, cuts = 44, (0, 1, 16, 44)
    x, weights = inputs(time), weights_of(time)
    documents = None
    if packed:
        documents = cases.random_documents(time, seed=5)
        documents["segment_ids"][:, 14:18] = -1
        documents["segment_ids"][:, :2] = [3, 1]
        documents["previous_segment"] = np.array([-1, -1], np.int32)
    seen = seen_by(time, **(documents or {}))
    with jax.enable_x64(True):
        x = cast(x, "float64")
        empty = AttentionState.empty(B, 50, G, K, V, jnp.float64)

        def evaluate(function):
            def loss(x):
                y = function(x)
                return jnp.sum(jnp.sin(y) * weights), y

            return run(jax.grad(loss, has_aux=True), x)

        got = evaluate(lambda x: in_pieces(x, cuts, empty, documents, **FORMS[form])[0])
        expected = evaluate(lambda x: judge(x, seen))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1))


def test_the_cache_holds_the_current_document_alone():
    """In order, without padding; the length counts from its beginning."""
    x = cast(inputs(12), "float32")
    ids = np.zeros((B, 12), np.int32)
    ids[0, 5:] = 1
    ids[0, 7] = ids[1, 0] = -1
    empty = AttentionState.empty(B, 16, G, K, V)
    _, state = run(
        lambda x, empty: attention(x["q"], x["k"], x["v"], empty, segment_ids=ids), x, empty
    )
    assert state.length.tolist() == [6, 11]
    assert cache_room(state).tolist() == [10, 5]
    np.testing.assert_array_equal(state.keys[0, :6], x["k"][0][np.array([5, 6, 8, 9, 10, 11])])
    np.testing.assert_array_equal(state.values[1, :11], x["v"][1, 1:])


@pytest.mark.parametrize("form", ("reference", "blockwise-5"))
@pytest.mark.parametrize("cuts", ((0, 20), (0, 8, 9, 20), (0, 3, 4, 5, 12, 13, 14, 15, 20)))
def test_tokens_that_do_not_fit_are_not_a_number(form, cuts):
    """Eight places: the ninth token of a document and later ones give NaN however they are cut, the
    stored ones stay, and the next document is right again.
    """
    time, places = 20, 8
    ids = np.zeros((B, time), np.int32)
    ids[0, 13:] = 1
    ids[1, 3:5] = -1
    documents = {"segment_ids": ids, "previous_segment": np.array([-1, -1], np.int32)}
    x = cast(inputs(time), "float32")
    empty = AttentionState.empty(B, places, G, K, V)
    y, state = run(lambda x, empty: in_pieces(x, cuts, empty, documents, **FORMS[form]), x, empty)
    lost = np.zeros((B, time), bool)
    lost[0, 8:13] = lost[1, 10:] = True
    np.testing.assert_array_equal(np.isnan(y).all((2, 3)), lost)
    np.testing.assert_array_equal(np.isnan(y).any((2, 3)), lost)
    assert cache_room(state).tolist() == [1, -10]
    np.testing.assert_array_equal(state.keys[0, :7], x["k"][0, 13:])
    np.testing.assert_array_equal(state.keys[1, :3], x["k"][1, :3])
    np.testing.assert_array_equal(state.keys[1, 3:], x["k"][1, 5:10])
    expected = judge(cast(inputs(time), "float32"), seen_by(time, ids))
    np.testing.assert_allclose(y[~lost], expected[~lost], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ("reference", "blockwise-5"))
@pytest.mark.parametrize("cuts", ((0, 20), (0, 6, 7, 9, 20)))
def test_a_token_that_is_not_a_number_breaks_its_document_alone(form, cuts):
    """What stands before it is right, what follows is not a number and not stored, and the next
    document has a clean cache.
    """
    time = 20
    ids = np.zeros((B, time), np.int32)
    ids[0, 13:] = 1
    ids[1, 5] = -1
    documents = {"segment_ids": ids, "previous_segment": np.array([-1, -1], np.int32)}
    x = cast(inputs(time), "float32")
    broken = x | {"k": x["k"].at[0, 6].set(jnp.nan), "v": x["v"].at[1, 8, 0, 0].set(jnp.inf)}
    empty = AttentionState.empty(B, 24, G, K, V)
    y, state = run(
        lambda x, empty: in_pieces(x, cuts, empty, documents, **FORMS[form]), broken, empty
    )
    lost = np.zeros((B, time), bool)
    lost[0, 6:13] = lost[1, 8:] = True
    np.testing.assert_array_equal(np.isnan(y).all((2, 3)), lost)
    np.testing.assert_array_equal(np.isnan(y).any((2, 3)), lost)
    expected = judge(x, seen_by(time, ids))
    np.testing.assert_allclose(y[~lost], expected[~lost], rtol=0, atol=1e-5)
    room = cache_room(state).tolist()
    assert room[0] == 24 - 7 and room[1] < 0
    assert np.isfinite(state.keys).all() and np.isfinite(state.values).all()


def test_a_cache_of_another_type():
    """A bfloat16 cache stays one, and rounds what comes out of it; products are in the inputs'
    type.
    """
    x = cast(inputs(9), "float32")
    empty = AttentionState.empty(B, 9, G, K, V, jnp.bfloat16)
    y, state = run(lambda x, empty: in_pieces(x, (0, 5, 9), empty), x, empty)
    assert state.keys.dtype == state.values.dtype == jnp.bfloat16
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, judge(x, seen_by(9)), rtol=0, atol=3e-2)


def test_a_step_does_not_copy_the_cache():
    """One token writes itself into the donated cache and reads that: no second cache in memory."""
    state = jax.eval_shape(lambda: AttentionState.empty(1, 4096, G, K, V))
    token = {
        name: jax.ShapeDtypeStruct(a.shape, "float32") for name, a in inputs(1, batch=1).items()
    }

    def step(state, x):
        return attention(x["q"], x["k"], x["v"], state)

    compiled = jax.jit(step, donate_argnums=0).lower(state, token).compile()
    cache = 4 * 4096 * G * (K + V)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    print("temporaries", memory.temp_size_in_bytes, "cache", cache)
    assert memory.temp_size_in_bytes < 2 * cache


def test_without_a_state_none_is_returned():
    x = cast(inputs(3), "float32")
    assert attention(x["q"], x["k"], x["v"])[1] is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((B, 8, G, K + 1, V), r"initial_state.keys has shape \(2, 8, 2, 9\)"),
        ((B + 1, 8, G, K, V), r"initial_state.keys has shape \(3"),
        ((B, 0, G, K, V), "no places"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(shape, message):
    x = cast(inputs(3), "float32")
    with pytest.raises(ValueError, match=message):
        attention(x["q"], x["k"], x["v"], AttentionState.empty(*shape))
