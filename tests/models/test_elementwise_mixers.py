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
