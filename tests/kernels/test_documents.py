"""Cuts, resets, padding, in both cells and every backend: where a sequence is cut, what is packed
with it, changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import MLSTMState, SLSTMState
from pallas_kernels.segments import last_segment
from pallas_kernels.testing import cases, reference

EXPONENTIAL, SIGMOID = {"eps": 0.0}, {"input_gate": "sigmoid"}
CELLS = {
    "mlstm-recurrent": ("mlstm", {"backend": "recurrent"} | EXPONENTIAL),
    "mlstm-parallel": ("mlstm", {"backend": "parallel"} | EXPONENTIAL),
    "mlstm-chunkwise": ("mlstm", {"backend": "chunkwise", "chunk_size": 8} | EXPONENTIAL),
    "mlstm-sigmoid-recurrent": ("mlstm", {"backend": "recurrent"} | SIGMOID),
    "mlstm-sigmoid-chunkwise": ("mlstm", {"backend": "chunkwise", "chunk_size": 8} | SIGMOID),
    "slstm": ("slstm", {}),
}
every_cell = pytest.mark.parametrize(("cell", "options"), CELLS.values(), ids=CELLS)

PER_TOKEN = ("q", "k", "v", "i", "f", "x", "segment_ids")
STATES = {
    "mlstm": (MLSTMState, ("C0", "n0", "m0")),
    "slstm": (SLSTMState, ("c0", "n0", "h0", "m0")),
}


def inputs_of(cell, time, **options):
    return {"mlstm": cases.mlstm_inputs, "slstm": cases.slstm_inputs}[cell](time, **options)


def run(cell, inputs, **options):
    return {"mlstm": cases.run_mlstm, "slstm": cases.run_slstm}[cell](inputs, True, **options)


def stretch(inputs, start, stop):
    """Tokens start to stop; the state and all that is no sequence as it was."""
    return {name: x[:, start:stop] if name in PER_TOKEN else x for name, x in inputs.items()}


@every_cell
def test_a_sequence_may_be_cut_anywhere(cell, options):
    """Pieces that hand on the state and the last id equal the whole, values and gradients; cuts
    fall on borders, in padding.
    """
    inputs = inputs_of(cell, 48) | cases.random_documents(48, seed=5)
    if options.get("input_gate") == "sigmoid":
        inputs["m0"], inputs["n0"] = np.zeros_like(inputs["m0"]), np.zeros_like(inputs["n0"])
    inputs["segment_ids"][:, 14:18] = -1
    inputs["segment_ids"][:, :2] = [3, 1]
    cuts = (0, 1, 16, 48)

    def whole(inputs):
        return cases.true_values(cell, run(cell, inputs, **options))

    def in_pieces(inputs):
        state_type, names = STATES[cell]
        outputs = []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            piece = stretch(inputs, start, stop)
            h, state = run(cell, piece, **options)
            outputs.append(h)
            inputs = inputs | dict(zip(names, state, strict=True))
            inputs["previous_segment"] = last_segment(
                piece["segment_ids"], piece["previous_segment"]
            )
        return cases.true_values(cell, (jnp.concatenate(outputs, axis=1), state_type(*state)))

    with jax.enable_x64(True):
        cast = cases.in_dtype(inputs, "float64")
        floats = {name: x for name, x in cast.items() if x.dtype == jnp.float64}
        weights = cases.random_weights(
            [np.ones(x.shape) for x in jax.eval_shape(whole, cast)], last_state=True
        )

        def evaluate(run):
            def loss(floats):
                values = run(cast | floats)
                return reference.weighted(values, weights), values

            return jax.jit(jax.grad(loss, has_aux=True), compiler_options=cases.QUICK_COMPILE)(
                floats
            )

        gradients, values = evaluate(whole)
        got_gradients, got = evaluate(in_pieces)
    for x, y in zip(got, values, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9 * np.abs(y).max())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            got_gradients[name], gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max()
        )


@every_cell
def test_nothing_of_a_document_reaches_the_next(cell, options):
    """Packed documents equal separate ones to rounding, and a loss on the second has a gradient of
    exactly 0 in the first.

    Adversarial gates: the old document writes with i = +15 and never forgets, the new one writes
    with i = -15.
    """
    length = 20
    inputs = {name: x for name, x in inputs_of(cell, 2 * length).items() if not name.endswith("0")}
    if cell == "mlstm":
        inputs["i"][:, :length], inputs["i"][:, length:], inputs["f"][:] = 15, -15, 15
    else:
        inputs["x"][:, :length, 0], inputs["x"][:, length:, 0], inputs["x"][:, :, 1] = 15, -15, 15
    inputs["segment_ids"][:, length:] = 1
    alone = stretch(inputs, length, 2 * length)

    packed, separate = cases.in_dtype(inputs, "float32"), cases.in_dtype(alone, "float32")

    def loss(x, rest, second):
        h, state = run(cell, rest | x, **options)
        return jnp.sum(jnp.sin(h[:, second:])) + jnp.sum(state[0] * 1e-3), h[:, second:]

    def on_second(case, second):
        tokens = {
            name: x for name, x in case.items() if name in PER_TOKEN and name != "segment_ids"
        }
        compiled = jax.jit(
            jax.grad(loss, has_aux=True), static_argnums=2, compiler_options=cases.QUICK_COMPILE
        )
        return compiled(tokens, case, second)

    got, h = on_second(packed, length)
    expected, h_alone = on_second(separate, 0)
    np.testing.assert_allclose(h, h_alone, rtol=1e-6, atol=1e-6 * np.abs(h_alone).max())
    for name in expected:
        np.testing.assert_array_equal(got[name][:, :length], 0)
        np.testing.assert_allclose(
            got[name][:, length:],
            expected[name],
            rtol=1e-5,
            atol=1e-5 * np.abs(expected[name]).max(),
        )


@every_cell
def test_what_a_document_holds_does_not_move_the_last_bit_of_the_next(cell, options):
    """In float32, the border inside a chunk: gates of 1e4 before it or ordinary ones."""
    length = 20
    inputs = {name: x for name, x in inputs_of(cell, 2 * length).items() if not name.endswith("0")}
    inputs["segment_ids"][:, :length], inputs["segment_ids"][:, length:] = 0, 1
    inputs = cases.in_dtype(inputs, "float32")
    evaluate = jax.jit(lambda inputs: run(cell, inputs, **options))
    expected, state = evaluate(inputs)
    for size in (3.0, 1e4):
        other = dict(inputs)
        for name in set(PER_TOKEN) & set(inputs) - {"segment_ids"}:
            other[name] = np.array(inputs[name])
            other[name][:, :length] *= -size
        h, state_after = evaluate(other)
        assert np.abs(h - expected)[:, :length].max() > 0.01
        np.testing.assert_array_equal(h[:, length:], expected[:, length:])
        jax.tree.map(np.testing.assert_array_equal, state_after, state)


@every_cell
def test_padding_may_hold_anything(cell, options):
    """Huge values and gates, even NaN, at padding tokens: not one bit of the rest changes, and
    their gradients are 0.
    """
    inputs = cases.in_dtype(inputs_of(cell, 24) | cases.random_documents(24), "float32")
    padding = np.asarray(inputs["segment_ids"] < 0)
    assert padding.any()

    def loss(tokens):
        h, state = run(cell, inputs | tokens, **options)
        return jnp.sum(jnp.sin(h)) + jnp.sum(state[0]), (h, state)

    value_and_gradients = jax.jit(
        jax.grad(loss, has_aux=True), compiler_options=cases.QUICK_COMPILE
    )

    def evaluate(garbage):
        r = np.random.default_rng(0)
        tokens = {
            name: x for name, x in inputs.items() if name in PER_TOKEN and name != "segment_ids"
        }
        for name, x in tokens.items():
            where = padding.reshape(*padding.shape, *[1] * (x.ndim - 2))
            noise = np.float32(garbage) * r.choice([-1, 1], size=x.shape)
            tokens[name] = np.where(where, noise, x).astype(np.float32)
        return value_and_gradients(tokens)

    expected = evaluate(0.0)
    np.testing.assert_array_equal(np.asarray(expected[1][0])[padding], 0)
    for garbage in (1e30, np.nan):
        got = evaluate(garbage)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        for gradient in got[0].values():
            np.testing.assert_array_equal(np.asarray(gradient)[padding], 0)


@every_cell
def test_a_sequence_of_padding_returns_its_state(cell, options):
    inputs = cases.in_dtype(inputs_of(cell, 5), "float32")
    inputs["segment_ids"] = jnp.full_like(inputs["segment_ids"], -1)
    h, state = jax.jit(lambda inputs: run(cell, inputs, **options))(inputs)
    np.testing.assert_array_equal(h, 0)
    kept = (0,) if options.get("input_gate") == "sigmoid" else range(len(state))
    for index in kept:
        np.testing.assert_allclose(state[index], inputs[STATES[cell][1][index]], rtol=1e-6)
