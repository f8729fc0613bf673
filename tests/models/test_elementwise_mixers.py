"""Mixers without a matrix in their state, against the equations written out token by token in
float64: outputs and states.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose

from xlstm_jax.models import mixers
from xlstm_jax.models.mixer import Depth

TIME, DIM = 11, 12


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def mamba(x, p, settings):
    inner, number = settings.inner_dim(DIM), settings.state_dim
    rank, taps = settings.rank_of(DIM), p["conv"]["kernel"]
    window, h, outputs = np.zeros((len(taps), inner)), np.zeros((number, inner)), []
    for x_t in x:
        u, z = np.split(x_t @ p["in_projection"]["kernel"] + p["in_projection"]["bias"], 2)
        window = np.concatenate([window[1:], u[None]])
        u = silu(p["conv"]["bias"] + np.sum(taps * window, axis=0))
        numbers = u @ p["x_projection"]["kernel"]
        dt, b, c = numbers[:rank], numbers[rank : rank + number], numbers[rank + number :]
        raw = dt @ p["step_projection"]["kernel"] + p["step_projection"]["bias"]
        step = np.log1p(np.exp(raw))
        h = np.exp(step * -np.exp(p["a_log"])) * h + step * u * b[:, None]
        y = (c @ h + p["skip"] * u) * silu(z)
        outputs.append(y @ p["out_projection"]["kernel"] + p["out_projection"]["bias"])
    return np.array(outputs), (h, window[1:])


def mixed(x_t, before, share):
    return share * x_t + (1 - share) * before


def rwkv4(x, p, settings):
    """With plain sums of exponentials, which float64 holds: no largest logarithm."""
    before, num, den, outputs = np.zeros(DIM), np.zeros(DIM), np.zeros(DIM), []
    largest = np.full(DIM, -np.inf)
    w, u = np.exp(-np.exp(p["decay"])), p["bonus"]
    for x_t in x:
        k, v, r = (
            mixed(x_t, before, p["mix"][name]) @ p[name]["kernel"]
            for name in ("key", "value", "receptance")
        )
        average = (num + np.exp(u + k) * v) / (den + np.exp(u + k))
        num, den = w * num + np.exp(k) * v, w * den + np.exp(k)
        largest = np.maximum(largest + np.log(w), k)
        outputs.append((sigmoid(r) * average) @ p["out_projection"]["kernel"])
        before = x_t
    # ours are divided by the exponential of the largest logarithm
    return np.array(outputs), (num / np.exp(largest), den / np.exp(largest), largest, before)


def rwkv4_channel(x, p, settings):
    before, outputs = np.zeros(DIM), []
    for x_t in x:
        k = mixed(x_t, before, p["mix"]["key"]) @ p["key"]["kernel"]
        r = mixed(x_t, before, p["mix"]["receptance"]) @ p["receptance"]["kernel"]
        outputs.append(sigmoid(r) * (np.maximum(k, 0) ** 2 @ p["value"]["kernel"]))
        before = x_t
    return np.array(outputs), before


def hgrn(x, p, settings, bound):
    h, outputs = np.zeros(DIM), []
    for x_t in x:
        z, i, g = (x_t @ p[name]["kernel"] for name in ("forget_gate", "input", "output_gate"))
        f = bound + (1 - bound) * sigmoid(z)
        h = f * h + (1 - f) * silu(i)
        normed = h / np.sqrt(np.mean(h**2) + settings.norm_eps) * p["norm"]["scale"]
        outputs.append((normed * silu(g)) @ p["out_projection"]["kernel"])
    return np.array(outputs), h


def lstm(x, p, settings):
    """As documented of torch.nn.LSTM, gates i, f, g, o."""
    (W, b), (R, b_recurrent) = (
        (p[name]["kernel"], p[name]["bias"]) for name in ("input", "recurrent")
    )
    c, h, outputs = np.zeros(DIM), np.zeros(DIM), []
    for x_t in x:
        raw = [x_t @ W[:, g] + b[g] + h @ R[:, g] + b_recurrent[g] for g in range(4)]
        c = sigmoid(raw[1]) * c + sigmoid(raw[0]) * np.tanh(raw[2])
        h = sigmoid(raw[3]) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs), (c, h)


def causal(taps, x):
    """y_t = sum_s taps_{t-s} x_s, the first tap the current token's."""
    return np.array(
        [sum(taps[t - s] * x[s] for s in range(t + 1) if t - s < len(taps)) for t in range(TIME)]
    )


def h3(x, p, settings):
    q, k, v = np.split(x @ p["in_projection"]["kernel"] + p["in_projection"]["bias"], 3, axis=-1)
    u = (causal(p["conv"]["kernel"][::-1], k) + p["conv"]["bias"]) * v
    step, a = np.exp(p["step_log"]), -np.exp(p["a_real_log"]) + 1j * p["a_imag"]
    c = (p["c_real"] + 1j * p["c_imag"]) * (np.exp(step * a) - 1) / a
    h, y = np.zeros(a.shape, complex), []
    for u_t in u:
        h = np.exp(step * a) * h + u_t
        y.append(2 * np.sum(c * h, axis=0).real + p["skip"] * u_t)
    out = (q * np.array(y)) @ p["out_projection"]["kernel"] + p["out_projection"]["bias"]
    return out, (np.stack([h.real, h.imag]), k[TIME - settings.conv_width + 1 :])


def hyena(x, p, settings):
    """Of order 3, with one wave, one layer between and no state."""
    projected = x @ p["in_projection"]["kernel"]
    projected = causal(p["conv"]["kernel"][::-1], projected) + p["conv"]["bias"]
    x_1, x_2, x_3, v = np.split(projected, 4, axis=-1)
    t = np.arange(TIME)[:, None] / (settings.filter_length - 1)
    wave = 2 * np.pi * 1e-4 * np.arange(TIME)[:, None] / settings.filter_length
    net, h = p["filters"], np.concatenate([t, np.cos(wave), -np.sin(wave)], axis=-1)
    for layer in (net["layer_0"], net["layer_1"]):
        h = np.sin(net["frequency"] * (h @ layer["kernel"] + layer["bias"]))
    rates = np.log(100) * np.linspace(1 / 1.5, 1 / 0.3, DIM)
    z = v * x_3
    for number, gate in enumerate((x_2, x_1)):
        filters = h @ net["last"]["kernel"][:, number * DIM : (number + 1) * DIM]
        z = (causal(filters * np.exp(-rates * t), z) + p["skip"][number] * z) * gate
    return z @ p["out_projection"]["kernel"], None


class Case(NamedTuple):
    """A mixer's equations, its settings here, and what the layers of its stack share."""

    written_out: Any
    settings: dict[str, Any]
    share: np.ndarray | None = None


CASES = {
    "mamba": Case(mamba, {"state_dim": 5, "rank": 3, "up_factor": 1.5, "bias": True}),
    "rwkv4": Case(rwkv4, {}),
    "hgrn": Case(hgrn, {}, np.linspace(0, 0.9, DIM)),
    "lstm": Case(lstm, {}),
    "h3": Case(h3, {"state_dim": 3, "conv_width": 5, "bias": True}),
    "hyena": Case(
        hyena,
        {
            "order": 3,
            "filter_hidden": 6,
            "filter_layers": 1,
            "filter_length": 9,
            "filter_frequency": 1.0,
        },
    ),
    "rwkv4_channel": Case(rwkv4_channel, {"factor": 2.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_state_are_those_of_the_equations(name):
    case, mixer = CASES[name], mixers.find(name)
    settings = mixer.section(**case.settings)
    module = mixer.module(settings, dim=DIM, depth=Depth(1, 3))
    share = {} if case.share is None else {"share": jnp.asarray(case.share, jnp.float32)}
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, TIME, DIM)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x, **share))["params"]
    params = jax.tree.map(
        lambda leaf: np.float32(leaf + rng.normal(0, 0.5, leaf.shape)), dict(params)
    )
    y, state = jax.jit(module.apply)({"params": params}, x, **share)
    wide = jax.tree.map(np.float64, params)
    more = () if case.share is None else (case.share,)
    rows = [case.written_out(np.float64(row), wide, settings, *more) for row in x]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    assert_allclose(y, expected[0], rtol=1e-4, atol=1e-5)
    ours = jax.tree.leaves(state)
    theirs = jax.tree.leaves(expected[1])
    assert [leaf.shape for leaf in ours] == [leaf.shape for leaf in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def initial(name: str, depth: Depth, dim: int) -> Any:
    mixer = mixers.find(name)
    module = mixer.module(mixer.section(), dim=dim, depth=depth)
    x = jnp.zeros((1, 2, dim))
    return nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))["params"]


def test_mambas_memory_starts_with_decays_of_all_lengths():
    params = initial("mamba", Depth(0, 2), 64)
    steps = np.log1p(np.exp(params["step_projection"]["bias"]))
    assert 9e-4 < steps.min() < 2e-3 and 5e-2 < steps.max() < 0.101
    assert_allclose(np.median(steps), 1e-2, rtol=0.6)  # the middle of their logarithms
    assert_allclose(np.exp(params["a_log"]), np.arange(1, 17)[:, None] * np.ones(128), rtol=1e-5)
    assert_allclose(params["skip"], 1)


@pytest.mark.parametrize("block", [0, 2])
def test_rwkv4_starts_with_the_authors_decays_and_shares(block):
    """As in transformers' `RwkvPreTrainedModel._init_weights`, but for time_first, which it leaves
    at 1 where the authors have log 0.3 and a zigzag.
    """
    depth, dim, late = Depth(block, 3), 9, block / 2
    params, channel = initial("rwkv4", depth, dim), np.arange(dim)
    decay = -5 + 8 * (channel / (dim - 1)) ** (0.7 + 1.3 * late)
    assert_allclose(params["decay"], decay, rtol=1e-5, atol=1e-5)
    zigzag = np.array([0.5 * ((number + 1) % 3 - 1) for number in range(dim)])
    assert_allclose(params["bonus"], np.log(0.3) + zigzag, rtol=1e-5)
    share = (channel / dim) ** (1 - block / 3)
    assert_allclose(params["mix"]["key"], share, rtol=1e-5)
    assert_allclose(params["mix"]["value"], share + 0.3 * late, rtol=1e-5)
    assert_allclose(params["mix"]["receptance"], np.sqrt(share), rtol=1e-5)
    of_channel_mix = initial("rwkv4_channel", depth, dim)["mix"]
    for name in ("key", "receptance"):
        assert_allclose(of_channel_mix[name], share, rtol=1e-5)


def test_mambas_memory_is_never_there_for_all_tokens():
    """Neither h nor its decays, N times as large as x, forward or backward."""
    mixer, dim, time = mixers.find("mamba"), 16, 512
    module = mixer.module(mixer.section(), dim=dim, depth=Depth(0, 2))
    x = jnp.zeros((1, time, dim))
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(jax.grad(lambda p, x: jnp.sum(module.apply(p, x)[0]), (0, 1)))
    found = re.findall(r"f32\[([\d,]+)\]", str(traced(params, x)))
    largest = max(np.prod([int(size) for size in shape.split(",")]) for shape in found)
    assert time * 2 * dim <= largest < time * 2 * dim * 16 / 4
