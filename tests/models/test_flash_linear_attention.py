"""The recurrences of RetNet, GLA, HGRN, HGRN2 and RWKV-6 give what those of flash-linear-attention
give (tests/parity/make_fla_fixtures.py wrote it).
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import LinearAttentionState, elementwise_scan, linear_attention
from xlstm_jax.models.lower_bounds import bounded_forget_gate
from xlstm_jax.models.mixers.retnet import log_decays

FILE = pathlib.Path(__file__).parent / "fixtures/flash_linear_attention.npz"


@functools.cache
def arrays(model: str) -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return {name.split("/")[1]: file[name] for name in file if name.startswith(f"{model}/")}


def retnet(q, k, v):
    decays = jnp.broadcast_to(log_decays(q.shape[2], jnp.float32), q.shape[:3])
    return linear_attention(q * q.shape[-1] ** -0.5, k, v, decays)[0], None


def gla(q, k, v, z, first):
    decays = jax.nn.log_sigmoid(z) / 16
    return linear_attention(q * q.shape[-1] ** -0.5, k, v, decays, LinearAttentionState(first))


def hgrn2(q, v, z, bound, first):
    log_f, closed = bounded_forget_gate(z, bound.reshape(z.shape[2:]))
    q = q * q.shape[-1] ** -0.5  # a factor that the norm behind it takes out again
    return linear_attention(q, closed, v, log_f, LinearAttentionState(first))


def hgrn(i, z, bound, first):
    log_f, closed = bounded_forget_gate(z, bound)
    return elementwise_scan(jnp.exp(log_f), jax.nn.silu(i) * closed, first)


def rwkv6(q, k, v, z, u, first):
    return linear_attention(q, k, v, -jnp.exp(z), LinearAttentionState(first), bonus=u)


@pytest.mark.parametrize("recurrence", [retnet, gla, hgrn, hgrn2, rwkv6])
def test_a_recurrence_gives_what_theirs_gives(recurrence):
    given = dict(arrays(recurrence.__name__))
    expected, last = given.pop("o"), given.pop("last", None)
    o, after = jax.jit(recurrence)(**given)
    np.testing.assert_allclose(o, expected, rtol=1e-4, atol=1e-4)
    if last is not None:
        np.testing.assert_allclose(jax.tree.leaves(after)[0], last, rtol=1e-4, atol=1e-4)
