"""`mlstm_front`: its definition is the paper's layers, and the kernels give the definition's values
and gradients in float64.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tpu_tiles
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm_front import mlstm_front, pallas_triton
from pallas_kernels.testing.around_cells import (
    TOLERANCE,
    draw_front,
    errors,
    exact,
    values_and_gradients,
)

WEIGHTS = ("query", "key", "value", "gate_kernel", "gate_bias")


def assert_same(found, expected, tolerance):
    wrong = {name: x for name, x in errors(found, expected).items() if not x <= tolerance}
    assert not wrong


def test_it_is_the_layers_of_the_block():
    def product(x, kernel):
        blocks = x.reshape(*x.shape[:2], *kernel.shape[:2])
        return jnp.einsum("btni,nio->btno", blocks, kernel).reshape(x.shape)

    with jax.enable_x64(True):
        arrays = draw_front()
        q, k, v = (
            product(arrays[x], arrays[name])
            for x, name in (("c", "query"), ("c", "key"), ("u", "value"))
        )
        gates = jnp.concatenate([q, k, v], -1) @ arrays["gate_kernel"] + arrays["gate_bias"]
        expected = {"q": q, "k": k, "v": v, "gates": gates}
        assert_same(mlstm_front(**arrays)._asdict(), expected, 1e-12)


TRITON_CASES = {
    # tokens and channels that fill tiles and groups, and a part of the next
    "parts of tiles": dict(time=70, channels=72, dtype="float32"),
    "whole tiles": dict(time=128, channels=128, dtype="bfloat16"),
    # five tiles, in stretches of three: the second has two
    "stretches": dict(batch=1, time=160, channels=16, dtype="float32"),
    "large blocks": dict(batch=1, time=2, channels=16, size=8, gates=1, dtype="float32"),
    "small blocks": dict(time=5, channels=8, size=2, dtype="float32"),
}


TPU_CASES = {
    # the last tile has fewer tokens
    "parts of tiles": dict(time=70, channels=256, dtype="float32"),
    # four tiles in two parts
    "whole tiles": dict(time=256, channels=128, dtype="bfloat16"),
    "large blocks": dict(batch=1, time=2, channels=128, size=8, gates=1, dtype="float32"),
    "a channel each": dict(time=3, channels=128, size=1, gates=17, dtype="float32"),
}


@pytest.mark.parametrize("name", TRITON_CASES)
def test_the_triton_kernels_are_the_definition(name, monkeypatch):
    if programs := {"whole tiles": 1, "stretches": 2}.get(name):  # several tiles for a program
        monkeypatch.setattr(pallas_triton, "PROGRAMS", programs)
    assert_is_the_definition("pallas_triton", TRITON_CASES[name])


@pytest.mark.parametrize("name", TPU_CASES)
def test_the_tpu_kernels_are_the_definition(name, monkeypatch):
    monkeypatch.setattr(tpu_tiles, "MOST_TOKENS", 128)
    assert_is_the_definition("pallas_tpu", TPU_CASES[name])


def assert_is_the_definition(backend, shape):
    arrays = draw_front(**shape)
    expected = exact(mlstm_front, arrays)
    low = {name: jnp.asarray(x, shape["dtype"]) for name, x in arrays.items()}
    with interpreted():
        found = values_and_gradients(mlstm_front, low, backend=backend)
    assert found["gates"].dtype == jnp.float32 and found["q"].dtype == low["u"].dtype
    assert all(found[f"d {name}"].dtype == x.dtype for name, x in low.items())
    assert_same(found, expected, TOLERANCE[shape["dtype"]])


def in_float32(**shape):
    return {name: jnp.asarray(x, jnp.float32) for name, x in draw_front(**shape).items()}


@pytest.mark.parametrize(
    ("backend", "shape", "reason"),
    [
        ("pallas_triton", dict(size=3), "must divide 16; they have 3"),
        ("pallas_tpu", dict(channels=384, size=3), "must divide 128; they have 3"),
        ("pallas_tpu", dict(channels=192), "a multiple of 128; they are 192"),
        ("pallas_tpu", dict(time=1, channels=65536, gates=1), "65536 channels are too many"),
    ],
)
def test_what_the_kernels_refuse(backend, shape, reason):
    with interpreted(), pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(mlstm_front, backend=backend), **in_float32(**shape))


@pytest.mark.parametrize(("backend", "device"), [("pallas_triton", "GPU"), ("pallas_tpu", "TPU")])
def test_float64_and_other_devices_are_refused(backend, device):
    with interpreted(), jax.enable_x64(True):
        with pytest.raises(NotImplementedError, match="u must be bfloat16.*; it is float64"):
            mlstm_front(**draw_front(), backend=backend)
    with pytest.raises(NotImplementedError, match=f"needs a {device}, and .* for a CPU"):
        mlstm_front(**in_float32(), backend=backend)


@pytest.mark.parametrize("backend", ["pallas_triton", "pallas_tpu"])
def test_forward_mode_is_refused_by_name(backend):
    arrays = in_float32(time=2, channels=128)
    run = functools.partial(mlstm_front, backend=backend)

    def call(arrays):
        return run(**arrays)

    with interpreted(), pytest.raises(TypeError, match='mlstm_front: .* backend="reference"'):
        jax.jit(lambda: jax.jvp(call, (arrays,), (arrays,))).lower()


@pytest.mark.parametrize("name", [*WEIGHTS, "c"])
def test_a_wrong_shape_is_named(name):
    arrays = draw_front()
    arrays[name] = jnp.concatenate([arrays[name]] * 2, axis=-1)
    named = {"gate_bias": "gate_kernel"}.get(name, name)
    with pytest.raises(ValueError, match=f"mlstm_front: {named} has shape"):
        mlstm_front(**arrays)


def test_another_type_is_named():
    arrays = draw_front()
    arrays["c"] = arrays["c"].astype("float16")
    with pytest.raises(ValueError, match="c is float16 and u float32; they must be alike"):
        mlstm_front(**{name: jnp.asarray(x) for name, x in arrays.items()})
