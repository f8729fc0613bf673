"""The numbers that the Pallas mLSTM kernels take instead of gates, against the forms that the XLA
backends use.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mlstm.chunkwise import _sum_from
from pallas_kernels.mlstm.gates import chunk_gates, gate_gradients
from pallas_kernels.mlstm.parallel import decay_weights, token_sums

B, T, H, L = 2, 48, 2, 16


def chunks():
    return (slice(start, start + L) for start in range(0, T, L))


@pytest.mark.parametrize(
    ("normalise", "documents"), list(itertools.product((True, False), (True, False)))
)
def test_weights_equal_those_of_the_parallel_form(normalise, documents):
    r = np.random.default_rng(0)
    log_i, log_f = 4 * r.normal(size=(B, T, H)), -np.abs(r.normal(size=(B, T, H)))
    m0, starts = r.normal(size=(B, H)), r.random((B, T)) < 0.2
    log_i[0, 5], starts[:, L] = -np.inf, True

    @jax.jit
    def compared(log_i, log_f, m0, starts):
        """Pairs that are equal, and pairs whose quotient is one."""
        equal, alike = [], []
        gates = chunk_gates(log_i, log_f, m0, starts if documents else None, L, normalise=normalise)
        before = m0 if normalise else 0 * m0
        for n, part in enumerate(chunks()):
            document = jnp.cumsum(starts[:, part], axis=1) if documents else None
            of_part = (jnp.moveaxis(x[:, part], 1, 2) for x in (log_i, log_f))
            sums = token_sums(*of_part, document[:, None] if documents else None, normalise)
            weights = decay_weights(sums, document, before, normalise)
            D, w, m = weights.D, weights.w, weights.m
            pairs = np.tri(L, dtype=bool) & (
                gates.document[:, None, part, None] == gates.document[:, None, None, part]
            )
            exponent = gates.row[:, :, part, None] + gates.col[:, :, None, part]
            exponent += gates.col_low[:, :, None, part]
            if not normalise:
                exponent += gates.row_low[:, :, part, None]
            got = jnp.exp(jnp.where(pairs, exponent, -jnp.inf))
            equal += [
                (got, D),
                (gates.w[:, :, part], w),
                (gates.kept[:, :, part], D[:, :, -1]),
                (gates.w_last[..., n], w[..., -1]),
                (gates.m[..., n], m[..., -1]),
            ]
            alike.append((gates.floor[:, :, part], jnp.exp(-m)))
            before = m[..., -1]
        return equal, alike

    with jax.enable_x64(True):
        equal, alike = compared(log_i, log_f, m0, starts)
    assert (len(equal), len(alike)) == (15, 3)
    for x, y in equal:
        np.testing.assert_allclose(x, y, atol=1e-13)
    for x, y in alike:
        np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("documents", (True, False))
def test_gradients_of_the_gates_are_summed_to_each_documents_end(documents):
    r = np.random.default_rng(0)
    q_dq, k_dk = r.normal(size=(2, B, H, T))
    after, starts = r.normal(size=(B, H, T // L)), r.random((B, T)) < 0.2
    wiped = np.zeros((B, H, T), bool)
    wiped[0, 0, 5] = True
    sum_from = jax.jit(_sum_from)
    with jax.enable_x64(True):
        given = starts if documents else None
        d_log_i, d_log_f = jax.jit(gate_gradients)(q_dq, k_dk, after, given, wiped)
        np.testing.assert_array_equal(d_log_i, np.moveaxis(k_dk, 1, 2))
        for n, part in enumerate(chunks()):
            document = np.cumsum(starts[:, part], axis=1) if documents else None
            expected = sum_from((q_dq - k_dk)[:, :, part], after[..., n], document)
            expected = np.where(wiped[:, :, part], 0, expected)
            np.testing.assert_allclose(np.moveaxis(d_log_f[:, part], 1, 2), expected, atol=1e-12)
