"""The cells for any gates, in float64: all weights as sums of logarithms, one for each pair of
tokens.

reference.py multiplies true states, whose size is exp(gate), and exp(710) is too large for float64.
Here a weight is exp(sum of logarithms - m), each sum taken anew and without a difference of sums,
so that nothing cancels. Nothing is shared with pallas_kernels. Gradients are autodiff's, with m
held constant.

Infinite gates are what the kernels promise: i = +inf counts as 65,536; the mLSTM's i = -inf and
f = -inf are the limits, nothing written and nothing left; the sLSTM's count as -2^18, so that a
first token with i = -inf gives the output of any other i.
"""

import jax
import jax.numpy as jnp
import numpy as np


def log_sigmoid(x):
    """-log(1 + exp(-x)), for any x."""
    return -jnp.logaddexp(0.0, -x)


def finite(x, least, largest):
    """Infinite gates as finite ones, without a gradient."""
    return jnp.where(jnp.isinf(x), jnp.where(x > 0, largest, least), x)


def mlstm(q, k, v, i, f, C0, n0, m0, *, input_gate="exponential", eps=0.0):
    """(h, C, n, m): the states are relative to m."""
    exponential = input_gate == "exponential"
    i, f = finite(i, -1e9, 2.0**16), finite(f, -1e12, 1e9)
    log_i, log_f = i if exponential else log_sigmoid(i), log_sigmoid(f)
    q, now = q / q.shape[-1] ** 0.5, np.arange(q.shape[1])
    # [t s u]: whether u is after s and not after t
    between = (now[:, None] < now) & (now <= now[:, None, None])
    after = jnp.sum(jnp.where(between[..., None], log_f[:, None, None], 0), axis=3)
    past = (now <= now[:, None])[..., None]  # [t s 1]: a token writes to itself and to later ones
    log_w = jnp.where(past, log_i[:, None] + after, -jnp.inf)
    log_w0 = jnp.sum(jnp.where(past, log_f[:, None], 0), axis=2)
    m = jnp.zeros_like(log_w0)
    if exponential:
        log_w0 = log_w0 + m0[:, None]
        m = jax.lax.stop_gradient(jnp.maximum(jnp.max(log_w, axis=2), log_w0))
    w, w0 = jnp.exp(log_w - m[:, :, None]), jnp.exp(log_w0 - m)
    C = jnp.einsum("btsh,bshk,bshv->bthkv", w, k, v) + w0[..., None, None] * C0[:, None]
    h = jnp.einsum("bthk,bthkv->bthv", q, C)
    n = jnp.zeros_like(n0)[:, None]
    if exponential:
        n = jnp.einsum("btsh,bshk->bthk", w, k) + w0[..., None] * n0[:, None]
        qn = jnp.abs(jnp.sum(q * n, axis=-1))
        floor = jnp.exp(-jnp.maximum(m, -600.0))  # an output of 1e-260 is one of 0
        h = h / (jnp.where(qn > floor, qn, floor) + eps)[..., None]
    return h, C[:, -1], n[:, -1], m[:, -1]


def slstm(x, R, bias, c0, n0, h0, m0):
    """(h, c, n, last h, m): c and n are relative to m."""

    def step(state, x):
        c, n, h, m = state
        i, f, z, o = (x[:, g] + jnp.einsum("bhv,hvw->bhw", h, R[g]) + bias[g] for g in range(4))
        i, f = finite(i, -(2.0**18), 2.0**16), finite(f, -(2.0**18), 1e9)
        log_f, empty = log_sigmoid(f), n == 0
        m_new = jax.lax.stop_gradient(jnp.where(empty, i, jnp.maximum(log_f + m, i)))
        write, keep = jnp.exp(i - m_new), jnp.exp(jnp.where(empty, -jnp.inf, log_f + m - m_new))
        c, n, m = keep * c + write * jnp.tanh(z), keep * n + write, m_new
        h = c / n / (1 + jnp.exp(-jnp.maximum(o, -700.0)))
        return (c, n, h, m), h

    state, h = jax.lax.scan(step, (c0, n0, h0, m0), jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(h, 0, 1), *state


def to_numpy(tree):
    """All leaves as float64 on the host."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
