"""The mixers with a matrix state against their equations, step by step in NumPy float64: outputs
and the state after the last token, from random parameters and a random state.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.models import mixers
from xlstm_jax.models.mixer import Depth

DIM, HEADS, BATCH, TIME = 16, 2, 2, 13
EPS = 1e-5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def normed(o, eps=EPS, center=False):
    """Over the last axis."""
    o = o - o.mean(-1, keepdims=True) if center else o
    return o / np.sqrt(np.mean(o**2, -1, keepdims=True) + eps)


def low_rank(x, weights, activation=lambda x: x):
    return activation(x @ weights["down"]["kernel"]) @ weights["up"]["kernel"]


def split(x, heads=HEADS):
    return x.reshape(*x.shape[:-1], heads, -1)


def memory(q, k, v, decay, S, bonus=None):
    """o_t = q_t S_t with S_t = diag(a_t) S_{t-1} + k_t^T v_t, over [B T H _]; the last S too.

    With a bonus u [H K] o_t = q_t (S_{t-1} + diag(u) k_t^T v_t).
    """
    outputs = []
    for t in range(q.shape[1]):
        written = k[:, t, :, :, None] * v[:, t, :, None, :]
        after = decay[:, t, :, :, None] * S + written
        read = after if bonus is None else S + bonus[..., None] * written
        outputs.append(np.einsum("bhk,bhkv->bhv", q[:, t], read))
        S = after
    return np.stack(outputs, axis=1), S


def gla(p, x, state):
    q, k, v, g = (x @ p[name]["kernel"] for name in ("query", "key", "value", "output_gate"))
    decay = sigmoid(low_rank(x, p["forget_gate"]) + p["forget_gate_bias"]) ** (1 / 16)
    q, k, v, decay = (split(part) for part in (q, k, v, decay))
    o, S = memory(q / np.sqrt(q.shape[-1]), k, v, decay, state.S)
    y = (normed(o) * p["head_norm"]["scale"]).reshape(x.shape) * silu(g)
    return y @ p["out_projection"]["kernel"], S


def turned(x, theta=10000.0):
    """Rotary positions from 0 on, [B T H K]: channels j and j + K/2 are a complex number."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


def retnet(p, x, state):
    q, k, v, g = (x @ p[name]["kernel"] for name in ("query", "key", "value", "output_gate"))
    q, k, v = split(q), split(k), split(v)
    decay = np.broadcast_to((1 - 2.0 ** (-5 - np.arange(HEADS)))[:, None], k.shape)
    o, S = memory(turned(q) / np.sqrt(q.shape[-1]), turned(k), v, decay, state.S)
    y = (normed(o) * p["head_norm"]["scale"]).reshape(g.shape) * silu(g)
    return y @ p["out_projection"]["kernel"], S


def hgrn2(p, x, state, share):
    q, z, i = (x @ p[name]["kernel"] for name in ("query", "forget_gate", "input"))
    f = share + (1 - share) * sigmoid(z)
    o, S = memory(*(split(part) for part in (silu(q), 1 - f, i, f)), state.S)
    y = normed(o.reshape(x.shape)) * p["norm"]["scale"]
    return y @ p["out_projection"]["kernel"], S


def rwkv(p, mixtures, decay, state, x, norm):
    """What RWKV-5 and RWKV-6 do alike; `norm` is that of the heads."""
    names = ("receptance", "key", "value", "gate")
    r, k, v, g = (x_i @ p[name]["kernel"] for name, x_i in zip(names, mixtures, strict=True))
    heads = (split(part) for part in (r, k, v, decay))
    o, S = memory(*heads, state.memory.S, p["bonus"].reshape(HEADS, -1))
    y = norm(o).reshape(x.shape) * p["head_norm"]["scale"] + p["head_norm"]["bias"]
    return (y * silu(g)) @ p["out_projection"]["kernel"], (S, x[:, -1])


def rwkv5(p, x, state):
    before = np.concatenate([state.last[:, None], x[:, :-1]], axis=1)
    shares = (p["mix"][name] for name in ("receptance", "key", "value", "gate"))
    mixtures = [share * x + (1 - share) * before for share in shares]
    decay = np.broadcast_to(np.exp(-np.exp(p["decay"])), x.shape)
    return rwkv(p, mixtures, decay, state, x, lambda o: normed(o / 8, 1e-5, center=True))


def rwkv6(p, x, state):
    before = np.concatenate([state.last[:, None], x[:, :-1]], axis=1)
    z, mixtures = x + p["mix"]["all"] * (before - x), {}
    downs = np.split(p["mix"]["low_rank"]["down"]["kernel"], 5, axis=1)
    ups = np.split(p["mix"]["low_rank"]["up"]["kernel"], 5)
    names = ("decay", "receptance", "key", "value", "gate")
    for name, down, up in zip(names, downs, ups, strict=True):
        mixtures[name] = x + (p["mix"][name] + np.tanh(z @ down) @ up) * (before - x)
    raw = p["decay"] + low_rank(mixtures.pop("decay"), p["decay_low_rank"], np.tanh)
    norm = functools.partial(normed, eps=64e-5, center=True)
    return rwkv(p, mixtures.values(), np.exp(-np.exp(raw)), state, x, norm)


CASES = {
    "rwkv5": (rwkv5, {"head_dim": DIM // HEADS}),
    "rwkv6": (rwkv6, {"head_dim": DIM // HEADS, "mix_rank": 3, "decay_rank": 5}),
    "retnet": (retnet, {"num_heads": HEADS}),
    "gla": (gla, {"num_heads": HEADS}),
    "hgrn2": (hgrn2, {"head_dim": DIM // HEADS}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_state_are_those_of_the_equations(name):
    oracle, values = CASES[name]
    mixer = mixers.find(name)
    settings = mixer.section(**values)
    module = mixer.module(settings, DIM, Depth(1, 3))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, TIME, DIM))
    state = mixer.empty_state(settings, DIM, BATCH, jnp.float32, None)
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), state)
    more = {} if mixer.stack is None else {"share": rng.uniform(0, 0.9, size=DIM)}

    @jax.jit
    def variables():
        return nn.meta.unbox(module.init(jax.random.key(0), jnp.asarray(x, jnp.float32), **more))

    variables = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) + 0.3 * rng.normal(size=leaf.shape), variables()
    )
    wanted, wanted_state = oracle(variables["params"], x, state, **more)
    in_float32 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (variables, x, state))
    y, after = jax.jit(lambda *arguments: module.apply(*arguments, **more))(*in_float32)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(wanted_state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [0, 2])
def test_rwkv5_and_rwkv6_start_with_the_authors_decays_bonus_and_shares(block):
    """Those of RWKV-LM's model.py; RWKV-6 keeps the shares of the token before."""
    depth, late, channel = Depth(block, 3), block / 2, np.arange(DIM)
    starts = {}
    for name in ("rwkv5", "rwkv6"):
        mixer = mixers.find(name)
        module = mixer.module(mixer.section(head_dim=8), DIM, depth)
        init = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2, DIM)))
        starts[name] = nn.meta.unbox(init)["params"]
    decay = -6 + 5 * (channel / (DIM - 1)) ** (0.7 + 1.3 * late)
    bonus = late * (1 - channel / (DIM - 1)) + 0.1 * ((channel + 1) % 3 - 1)
    share = (channel / DIM) ** (1 - block / 3)
    shares = {
        "key": share,
        "value": share + 0.3 * late,
        "receptance": np.sqrt(share),
        "gate": np.sqrt(share),
    }
    for params in starts.values():
        np.testing.assert_allclose(params["decay"], decay, rtol=1e-5)
        np.testing.assert_allclose(params["bonus"], bonus, rtol=1e-5, atol=1e-6)
    for name, expected in shares.items():
        np.testing.assert_allclose(starts["rwkv5"]["mix"][name], expected, rtol=1e-5)
    for name, expected in (shares | {"all": share, "decay": share}).items():
        np.testing.assert_allclose(starts["rwkv6"]["mix"][name], 1 - expected, atol=1e-6)
    for low_rank in (starts["rwkv6"]["mix"]["low_rank"], starts["rwkv6"]["decay_low_rank"]):
        assert not np.any(low_rank["down"]["kernel"])
        assert 0.009 < np.abs(low_rank["up"]["kernel"]).max() <= 0.01
