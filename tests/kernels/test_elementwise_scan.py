"""Elementwise recurrences against one token at a time in float64: h_t = a_t h_{t-1} + b_t, S6 made
of it, and RWKV-4's decayed average.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.elementwise_scan import (
    AverageState,
    decayed_average,
    elementwise_recurrence,
    elementwise_scan,
)
from pallas_kernels.segments import last_segment
from pallas_kernels.testing import cases
from tests.kernels.differentiated import assert_close, compiled

B, D, N = 2, 5, 3
FORMS = {
    "recurrent": {"backend": "recurrent", "chunk_size": 8},
    "associative": {"backend": "associative", "chunk_size": 8},
}
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
every_op = pytest.mark.parametrize("op", ("scan", "s6", "average"))
PER_TOKEN = ("a", "b", "delta", "x", "B", "C", "k", "v")
STATES = {"scan": ("h",), "s6": ("h",), "average": ("numerator", "denominator", "m")}


def inputs(op, time, seed=0, size=1.0):
    r = np.random.default_rng(seed)
    if op == "scan":
        return {
            "a": 1 / (1 + np.exp(-size * r.normal(size=(B, time, D)))),
            "b": r.normal(size=(B, time, D)),
            "h": r.normal(size=(B, D)),
        }
    if op == "s6":
        return {
            "delta": size * np.exp(r.normal(size=(B, time, D))),
            "x": r.normal(size=(B, time, D)),
            "B": r.normal(size=(B, time, N)),
            "C": r.normal(size=(B, time, N)),
            "A": -np.exp(r.normal(size=(D, N))),
            "h": r.normal(size=(B, D, N)),
        }
    return {
        "k": size * r.normal(size=(B, time, D)),
        "v": r.normal(size=(B, time, D)),
        "log_decay": -np.exp(r.normal(size=D)),
        "bonus": r.normal(size=D),
        "numerator": r.normal(size=(B, D)),
        "denominator": r.uniform(1, 2, size=(B, D)),
        "m": r.normal(size=(B, D)),
    }


def call(op, x, segment_ids=None, previous_segment=None, **options):
    """(y, the state's arrays) of an op."""
    options |= {"segment_ids": segment_ids, "previous_segment": previous_segment}
    if op == "scan":
        y, h = elementwise_scan(x["a"], x["b"], x.get("h"), **options)
        return y, (h,)
    if op == "s6":
        y, h = elementwise_recurrence(
            lambda t: (
                jnp.exp(t["delta"][..., None] * x["A"]),
                (t["delta"] * t["x"])[..., None] * t["B"][..., None, :],
            ),
            lambda h, t: jnp.einsum("bldn,bln->bld", h, t["C"], precision="highest"),
            {name: x[name] for name in ("delta", "x", "B", "C")},
            x.get("h"),
            **options,
        )
        return y, (h,)
    state = AverageState(x["numerator"], x["denominator"], x["m"]) if "m" in x else None
    return decayed_average(x["k"], x["v"], x["log_decay"], x["bonus"], state, **options)


def true_values(op, result):
    y, state = result
    if op == "average":
        return y, state[0] * jnp.exp(state[2]), state[1] * jnp.exp(state[2])
    return y, *state


def judge(op, x, segment_ids, previous_segment):
    """The recurrences without a stabiliser, and the rule of segments, written down once more."""
    states = {
        "average": lambda: (x["numerator"] * jnp.exp(x["m"]), x["denominator"] * jnp.exp(x["m"]))
    }.get(op, lambda: (x["h"],))()

    def step(carry, token):
        before, last = carry
        t, segment = token
        start = (last >= 0) & (segment >= 0) & (segment != last)
        before = [jnp.where(start.reshape(-1, *[1] * (s.ndim - 1)), 0, s) for s in before]
        if op == "scan":
            after = [t["a"] * before[0] + t["b"]]
            y = after[0]
        elif op == "s6":
            write = (t["delta"] * t["x"])[..., None] * t["B"][:, None]
            after = [jnp.exp(t["delta"][..., None] * x["A"]) * before[0] + write]
            y = jnp.sum(after[0] * t["C"][:, None], axis=-1)
        else:
            own, weight = jnp.exp(x["bonus"] + t["k"]), jnp.exp(t["k"])
            y = (before[0] + own * t["v"]) / (before[1] + own)
            decay = jnp.exp(x["log_decay"])
            after = [decay * before[0] + weight * t["v"], decay * before[1] + weight]
        real = segment >= 0
        keep = [
            jnp.where(real.reshape(-1, *[1] * (s.ndim - 1)), s, r)
            for s, r in zip(after, before, strict=True)
        ]
        return (keep, jnp.where(real, segment, last)), jnp.where(real[:, None], y, 0)

    tokens = {name: jnp.moveaxis(x[name], 1, 0) for name in PER_TOKEN if name in x}
    carry = (list(states), previous_segment)
    (states, _), y = jax.lax.scan(step, carry, (tokens, segment_ids.T))
    return jnp.moveaxis(y, 0, 1), *states


@functools.cache
def judge_of(op, documents, time):
    """Compiled once for all forms; `documents` makes them for a time."""
    return compiled(lambda x: judge(op, x, *documents(time)))


def documents_of(time, seed=0):
    return tuple(cases.random_documents(time, seed).values())


def no_documents(time):
    return np.zeros((B, time), np.int32), np.full(B, -1, np.int32)


@every_op
@every_form
@pytest.mark.parametrize("time", (1, 29))
def test_values_and_gradients(op, options, time):
    """Packed documents, an initial state, the last state in the loss."""
    x, documents = inputs(op, time), documents_of(time)
    got = compiled(lambda x: true_values(op, call(op, x, *documents, **options)))(x, "float64")
    assert_close(got, judge_of(op, documents_of, time)(x, "float64"), 1e-11)


@every_op
@every_form
def test_float32_without_documents(op, options):
    """Also without an initial state, which is the one of zeros."""
    x = {name: np.asarray(a, np.float32) for name, a in inputs(op, 50).items()}
    expected = judge_of(op, no_documents, 50)
    got = compiled(lambda x: true_values(op, call(op, x, **options)))(x, "float32")
    assert_close(got, expected(x, "float64"), 2e-5)
    new = {n: a for n, a in x.items() if n not in STATES[op]}
    zeros = new | {n: np.zeros_like(x[n]) for n in STATES[op]}
    got = jax.jit(lambda x: call(op, x, **options)[0])(new)
    assert_close([got], expected(zeros, "float64")[:1], 2e-5)


@every_form
def test_weights_beyond_the_largest_float(options):
    """k of hundreds, up and down: an average stays between its values, gradients stay finite."""
    x = {n: np.asarray(a, "float32") for n, a in inputs("average", 40, size=300.0).items()}

    def loss(x):
        y, _ = call("average", x, **options)
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert np.abs(y[:, 5:]).max() <= np.abs(x["v"]).max() + 1e-5
    assert all(np.isfinite(g).all() for g in gradients.values())
    low = np.full((B, 4, D), -500.0, np.float32)
    average = jax.jit(
        lambda k: decayed_average(k, x["v"][:, :4], x["log_decay"], x["bonus"], **options)[0]
    )
    y, shifted = average(low), average(low + 500)
    np.testing.assert_allclose(y, shifted, rtol=0, atol=1e-4)


def derivatives(op, function):
    """The slope along a direction and the gradient's, of a function of inputs and documents."""
    time = 11
    documents = documents_of(time, seed=3)

    @functools.partial(jax.jit, compiler_options=cases.QUICK_COMPILE)
    def slopes(x, direction):
        def loss(x):
            return sum(jnp.sum(jnp.sin(a)) for a in function(op, x, *documents))

        along = ((x,), (direction,))
        return jax.jvp(loss, *along)[1], jax.jvp(jax.grad(loss), *along)[1]

    with jax.enable_x64(True):
        found = slopes(inputs(op, time), inputs(op, time, seed=5))
        return [np.asarray(a) for a in jax.tree.leaves(found)]


@functools.cache
def derivatives_of_the_judge(op):
    return derivatives(op, judge)


@every_op
@every_form
def test_forward_and_second_derivatives(op, options):
    got = derivatives(op, lambda *x: true_values(op, call(*x, **options)))
    assert_close(got, derivatives_of_the_judge(op), 1e-10)


def documents_and_padding(time):
    ids, previous = documents_of(time, seed=5)
    ids[:, 10:14] = -1
    return ids, previous


@every_op
@every_form
def test_a_sequence_may_be_cut_anywhere(op, options):
    time, cuts = 26, (0, 1, 12, 26)
    x, (ids, previous) = inputs(op, time), documents_and_padding(time)

    def in_pieces(x):
        last, outputs = jnp.asarray(previous), []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            piece = x | {n: x[n][:, start:stop] for n in PER_TOKEN if n in x}
            segment_ids = jnp.asarray(ids[:, start:stop])
            y, state = call(op, piece, segment_ids, last, **options)
            x, last = x | dict(zip(STATES[op], state, strict=True)), last_segment(segment_ids, last)
            outputs.append(y)
        return true_values(op, (jnp.concatenate(outputs, axis=1), state))

    got = compiled(in_pieces)(x, "float64")
    assert_close(got, judge_of(op, documents_and_padding, time)(x, "float64"), 1e-11)


@every_op
@every_form
def test_nothing_of_a_document_or_of_padding_reaches_another(op, options):
    time, second = 20, 9
    x = inputs(op, time)
    ids = np.zeros((B, time), np.int32)
    ids[:, second:], ids[:, 13:15] = 1, -1
    tokens = [name for name in PER_TOKEN if name in x]
    for name in tokens:
        x[name][:, 13:15] = np.nan
    x = {name: jnp.asarray(a, "float32") for name, a in x.items()}

    def loss(x):
        y, *states = true_values(op, call(op, x, ids, **options))
        return jnp.sum(jnp.sin(y[:, second:])) + sum(jnp.sum(jnp.sin(s)) for s in states), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert (np.asarray(y[:, 13:15]) == 0).all()
    assert all(np.isfinite(g).all() for g in gradients.values())
    for name in tokens:
        assert (np.asarray(gradients[name][:, :second]) == 0).all()
        assert (np.asarray(gradients[name][:, 13:15]) == 0).all()
        assert np.abs(gradients[name][:, 16:]).max() > 0


@functools.cache
def temporary_bytes(time, backend):
    """Of the gradient of S6 with 16 states per channel, fused or with all a, b and h in memory."""
    shape = jax.ShapeDtypeStruct((1, time, 32), "float32")
    x = {"delta": shape, "x": shape, "B": shape, "C": shape}
    A = -jnp.ones((32, 32))

    def loss(x):
        return jnp.sum(call("s6", x | {"A": A}, backend=backend)[0] ** 2)

    return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("backend", ("recurrent", "associative"))
def test_memory_is_linear_in_time_and_holds_no_state_per_token(backend):
    """Four times the tokens, at most 4.2 times the memory; less than one h per token, where all a,
    b, h and their gradients would be six.
    """
    assert temporary_bytes(4096, backend) < 4.2 * temporary_bytes(1024, backend)
    assert temporary_bytes(4096, backend) < 4 * 4096 * 32 * 32


def test_bfloat16():
    """Tokens in bfloat16, states in float32."""
    x = {n: jnp.asarray(a, "bfloat16") for n, a in inputs("scan", 9).items()}
    y, (h,) = call("scan", x)
    assert (y.dtype, h.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: elementwise_scan(z((2, 9, 3)), z((2, 9, 4))), r"\(2, 9, 3\) and b \(2, 9, 4\)"),
        (lambda z: elementwise_scan(z((2, 9, 3)), z((2, 9, 3)), z((2, 4))), r"must be \(2, 3\)"),
        (lambda z: elementwise_scan(z((2, 0, 3)), z((2, 0, 3))), "no tokens"),
        (
            lambda z: elementwise_scan(z((2, 9, 3)), z((2, 9, 3)), segment_ids=z((2, 8))),
            r"segment_ids has shape \(2, 8\)",
        ),
        (
            lambda z: decayed_average(z((2, 9, 3)), z((2, 9, 3)), z((3,)), z((4,))),
            r"bonus has shape \(4,\).*must be \(3,\)",
        ),
        (
            lambda z: elementwise_scan(z((2, 9, 3)), z((2, 9, 3)), chunk_size=0),
            "chunk_size is 0",
        ),
    ],
)
def test_mistakes_are_named(function, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros)
