"""`mlstm_front`: its definition is the paper's layers, pieces equal the whole, and the kernels give
the definition's values and gradients in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm_front import mlstm_front, pallas_triton
from pallas_kernels.segments import last_segment
from pallas_kernels.testing.front_cases import (
    TOLERANCE,
    documents,
    draw,
    errors,
    exact,
    values_and_gradients,
)
from xlstm_jax.models.conv import causal_conv

WEIGHTS = ("conv_kernel", "conv_bias", "query", "key", "value", "gate_kernel", "gate_bias")


def call(arrays, **options):
    return mlstm_front(**arrays, **options)


def assert_same(found, expected, tolerance):
    wrong = {name: x for name, x in errors(found, expected).items() if not x <= tolerance}
    assert not wrong


def layers(arrays, segment_ids=None, previous_segment=None):
    window = arrays.get("window")
    if window is None:
        window = jnp.zeros((arrays["u"].shape[0], arrays["conv_kernel"].shape[0] - 1, 24))
    y, after = causal_conv(
        arrays["u"], arrays["conv_kernel"], arrays["conv_bias"], window, segment_ids,
        previous_segment,
    )  # fmt: skip
    c = jax.nn.silu(y)

    def product(x, kernel):
        blocks = x.reshape(*x.shape[:2], *kernel.shape[:2])
        return jnp.einsum("btni,nio->btno", blocks, kernel).reshape(x.shape)

    q, k, v = (
        product(c, arrays["query"]),
        product(c, arrays["key"]),
        product(arrays["u"], arrays["value"]),
    )
    gates = jnp.concatenate([q, k, v], axis=-1) @ arrays["gate_kernel"] + arrays["gate_bias"]
    return {"c": c, "q": q, "k": k, "v": v, "gates": gates, "after": after}


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_layers_of_the_block(window, packed):
    with jax.enable_x64(True):
        arrays = draw(window=window)
        given = documents(2, 9) if packed else {}
        front, after = jax.jit(call)(arrays, **given)
        expected = jax.jit(layers)(arrays, **given)
        assert_same(front._asdict() | {"after": after}, expected, 1e-12)


@pytest.mark.parametrize("cut", [2, 7])
def test_pieces_equal_the_whole(cut):
    run = jax.jit(call)
    with jax.enable_x64(True):
        arrays, given = draw(), documents(2, 9)
        ids, previous = given["segment_ids"], given["previous_segment"]
        whole, end = run(arrays, **given)
        first, window = run(
            arrays | {"u": arrays["u"][:, :cut]},
            segment_ids=ids[:, :cut],
            previous_segment=previous,
        )
        second, after = run(
            arrays | {"u": arrays["u"][:, cut:], "window": window},
            segment_ids=ids[:, cut:],
            previous_segment=last_segment(ids[:, :cut], previous),
        )
        for part, rest, both in zip(first, second, whole, strict=True):
            np.testing.assert_allclose(jnp.concatenate([part, rest], axis=1), both, atol=1e-12)
        np.testing.assert_allclose(after, end, atol=1e-12)


CASES = {
    # two tiles of tokens, channels that fill one group and a part of the next
    "documents": dict(time=70, channels=72, dtype="float32"),
    "one document": dict(time=66, channels=16, window=False, dtype="bfloat16"),
    "a window": dict(batch=1, time=2, channels=16, size=8, gates=1, dtype="float32"),
    "no taps before": dict(time=5, channels=8, size=2, width=1, dtype="float32"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "taps" in name else ()) for name in CASES],
)
def test_the_triton_kernels_are_the_definition(name, monkeypatch):
    shape = CASES[name]
    given = documents(2, shape["time"]) if name == "documents" else {}
    if name == "one document":  # several tiles one after the other in a program
        monkeypatch.setattr(pallas_triton, "PROGRAMS", 1)
    arrays = draw(**shape)
    expected = exact(arrays, **given)
    low = {name: jnp.asarray(x, shape["dtype"]) for name, x in arrays.items()}
    with interpreted():
        found = values_and_gradients(low, backend="pallas_triton", **given)
    assert found["gates"].dtype == jnp.float32 and found["q"].dtype == low["u"].dtype
    assert all(found[f"d {name}"].dtype == x.dtype for name, x in low.items())
    assert_same(found, expected, TOLERANCE[shape["dtype"]])


def test_what_the_kernels_refuse():
    with interpreted(), jax.enable_x64(True):
        with pytest.raises(NotImplementedError, match="u must be bfloat16, .*; it is float64"):
            call(draw(), backend="pallas_triton")
    low = {name: jnp.asarray(x, jnp.float32) for name, x in draw(size=3).items()}
    with interpreted(), pytest.raises(NotImplementedError, match="must divide 64; they have 3"):
        call(low, backend="pallas_triton")
    with pytest.raises(NotImplementedError, match="needs a GPU, and .* for a CPU"):
        call(low, backend="pallas_triton")


def test_forward_mode_is_refused_by_name():
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in draw(time=2, channels=8).items()}
    run = functools.partial(call, backend="pallas_triton")
    with interpreted(), pytest.raises(TypeError, match='mlstm_front: .* backend="reference"'):
        jax.jit(lambda: jax.jvp(run, (arrays,), (arrays,))).lower()


@pytest.mark.parametrize("name", [*WEIGHTS, "window"])
def test_a_wrong_shape_is_named(name):
    arrays = draw()
    arrays[name] = np.concatenate([arrays[name]] * 2, axis=-1)
    named = {"gate_bias": "gate_kernel"}.get(name, name)
    with pytest.raises(ValueError, match=f"mlstm_front: {named} has shape"):
        call(arrays)
