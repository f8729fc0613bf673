"""`mlstm_back`: its definition is the layers of both blocks, and the kernels give the definition's
values and gradients in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import tpu_tiles, triton_norm
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm_back import mlstm_back
from pallas_kernels.testing.around_cells import (
    TOLERANCE,
    draw_back,
    errors,
    exact,
    values_and_gradients,
)
from xlstm_jax.models.layers import normalize

PAPER = {"eps": 1e-5, "activation": "silu"}
OF_7B = {"eps": 1e-6, "activation": "sigmoid"}


def assert_same(found, expected, tolerance):
    wrong = {name: x for name, x in errors(found, expected).items() if not x <= tolerance}
    assert not wrong


@pytest.mark.parametrize("center", [True, False])
def test_it_is_the_layers_of_the_blocks(center):
    with jax.enable_x64(True):
        arrays = draw_back()
        h, scale, gate, c, skip = arrays.values()
        normed = normalize(jnp.asarray(h), 1e-5, center=center).reshape(gate.shape) * scale
        for found, expected in (
            (mlstm_back(**arrays, **PAPER, center=center), (normed + skip * c) * jax.nn.silu(gate)),
            (
                mlstm_back(h, scale, gate, eps=1e-5, activation="sigmoid", center=center),
                normed * jax.nn.sigmoid(gate),
            ),
        ):
            assert_same({"y": found}, {"y": expected}, 1e-12)


TRITON_CASES = {
    # three pieces of a head, the last tile with fewer tokens
    "as 125m": (dict(time=7, head_dim=384, dtype="float32"), PAPER),
    "one piece": (dict(batch=1, time=8, head_dim=64, dtype="bfloat16"), PAPER),
    # five tiles of two tokens, in stretches of three: the second has two
    "stretches": (dict(batch=1, time=10, heads=1, head_dim=2048, dtype="float32"), PAPER),
    "without a skip": (dict(time=3, head_dim=16, skip=False, dtype="float32"), OF_7B),
    "mean square": (
        dict(time=3, head_dim=24, skip=False, dtype="float32"),
        OF_7B | {"center": False},
    ),
}


TPU_CASES = {
    # strips of 16 tokens; the last tile has fewer than it could
    "as 125m": (dict(time=70, head_dim=384, dtype="float32"), PAPER),
    # four tiles in two parts
    "whole tiles": (dict(time=256, head_dim=128, dtype="bfloat16"), PAPER),
    # three tiles, one after the other
    "one part": (dict(batch=1, time=300, heads=1, head_dim=128, dtype="float32"), PAPER),
    "without a skip": (dict(time=3, head_dim=256, skip=False, dtype="float32"), OF_7B),
    "mean square": (
        dict(time=3, head_dim=128, skip=False, dtype="float32"),
        OF_7B | {"center": False},
    ),
}
BACKENDS = ("pallas_triton", "pallas_tpu")


@pytest.mark.parametrize("name", TRITON_CASES)
def test_the_triton_kernels_are_the_definition(name, monkeypatch):
    if name == "stretches":  # several tiles for a program
        monkeypatch.setattr(triton_norm, "PROGRAMS", 2)
    assert_is_the_definition("pallas_triton", *TRITON_CASES[name])


@pytest.mark.parametrize("name", TPU_CASES)
def test_the_tpu_kernels_are_the_definition(name, monkeypatch):
    monkeypatch.setattr(tpu_tiles, "MOST_TOKENS", 128)
    assert_is_the_definition("pallas_tpu", *TPU_CASES[name])


def assert_is_the_definition(backend, shape, options):
    arrays = draw_back(**shape)
    expected = exact(mlstm_back, arrays, **options)
    low = {name: jnp.asarray(x, shape["dtype"]) for name, x in arrays.items()}
    with interpreted():
        found = values_and_gradients(mlstm_back, low, backend=backend, **options)
    assert all(found[f"d {name}"].dtype == x.dtype for name, x in low.items())
    assert_same(found, expected, TOLERANCE[shape["dtype"]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_head_and_large_values(backend):
    """A head of zeros, values up to 1e15 and gates at both ends give what the definition gives."""
    arrays = draw_back(time=4, heads=1, head_dim=128)
    arrays["h"][0, 0], arrays["h"][0, 1] = 0, 1e15 * arrays["h"][0, 1]
    arrays["gate"][1, :2] = [[-1e4] * 128, [1e4] * 128]
    low = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    with interpreted():
        found = values_and_gradients(mlstm_back, low, backend=backend, **PAPER)
    held = {name: np.asarray(x, np.float64) for name, x in low.items()}
    assert_same(found, exact(mlstm_back, held, **PAPER), TOLERANCE["float32"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [(1, 3), (3, 1)])
def test_what_a_tile_lacks_is_no_token(rows, backend):
    """Even with no eps, where zeros have no norm: sums hold the tokens that there are."""
    options = PAPER | {"eps": 0.0}
    arrays = draw_back(*rows, heads=1, head_dim=128)
    low = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    with interpreted():
        found = values_and_gradients(mlstm_back, low, backend=backend, **options)
    assert_same(found, exact(mlstm_back, arrays, **options), TOLERANCE["float32"])


def in_float32(**shape):
    return {name: jnp.asarray(x, jnp.float32) for name, x in draw_back(**shape).items()}


@pytest.mark.parametrize(
    ("backend", "shape", "reason"),
    [
        ("pallas_triton", dict(head_dim=17), "16 times .*; it has 17 channels"),
        ("pallas_triton", dict(batch=1, time=1), "it is for several tokens"),
        ("pallas_tpu", dict(head_dim=192), "a multiple of 128 channels; it has 192"),
        ("pallas_tpu", dict(time=1, heads=512, head_dim=128), "65536 channels are too many"),
    ],
)
def test_what_the_kernels_refuse(backend, shape, reason):
    run = functools.partial(mlstm_back, **PAPER, backend=backend)
    with interpreted(), pytest.raises(NotImplementedError, match=reason):
        run(**in_float32(**shape))


@pytest.mark.parametrize(("backend", "device"), [("pallas_triton", "GPU"), ("pallas_tpu", "TPU")])
def test_float64_and_other_devices_are_refused(backend, device):
    run = functools.partial(mlstm_back, **PAPER, backend=backend)
    with interpreted(), jax.enable_x64(True):
        with pytest.raises(NotImplementedError, match="h must be bfloat16.*; it is float64"):
            run(**draw_back(head_dim=128))
    with pytest.raises(NotImplementedError, match=f"needs a {device}, and .* for a CPU"):
        run(**in_float32())


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_is_refused_by_name(backend):
    arrays = in_float32(head_dim=128)

    def call(arrays):
        return mlstm_back(**arrays, **PAPER, backend=backend)

    with interpreted(), pytest.raises(TypeError, match='mlstm_back: .* backend="reference"'):
        jax.jit(lambda: jax.jvp(call, (arrays,), (arrays,))).lower()


@pytest.mark.parametrize("name", ["scale", "gate", "c", "skip"])
def test_a_wrong_argument_is_named(name):
    arrays = {key: jnp.asarray(x, jnp.float32) for key, x in draw_back().items()}
    wider = arrays | {name: jnp.concatenate([arrays[name]] * 2, axis=-1)}
    with pytest.raises(ValueError, match=f"mlstm_back: {name} has shape"):
        mlstm_back(**wider, **PAPER)
    if arrays[name].ndim == 3:
        other = arrays | {name: arrays[name].astype("float16")}
        with pytest.raises(ValueError, match=f"{name} is float16 and h float32"):
            mlstm_back(**other, **PAPER)


def test_what_is_missing_or_unknown_is_named():
    arrays = draw_back()
    with pytest.raises(ValueError, match="c is given and skip is not; give both or neither"):
        mlstm_back(**{name: x for name, x in arrays.items() if name != "skip"}, **PAPER)
    with pytest.raises(ValueError, match="activation is 'tanh'; it must be one of silu, sigmoid"):
        mlstm_back(**arrays, eps=1e-5, activation="tanh")
