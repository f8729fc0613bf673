"""The cells for any gates, in float64: all weights as sums of logarithms, one pair of tokens at a
time.

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
    time, q = q.shape[1], q / q.shape[-1] ** 0.5
    outputs = []
    for t in range(time):
        after = [jnp.sum(log_f[:, s + 1 : t + 1], axis=1) for s in range(t + 1)]
        log_w = jnp.stack([log_i[:, s] + after[s] for s in range(t + 1)], axis=1)
        log_w0 = jnp.sum(log_f[:, : t + 1], axis=1) + (m0 if exponential else 0)
        m = jnp.maximum(jnp.max(log_w, axis=1), log_w0) if exponential else jnp.zeros_like(log_w0)
        m = jax.lax.stop_gradient(m)
        w, w0 = jnp.exp(log_w - m[:, None]), jnp.exp(log_w0 - m)
        C = jnp.einsum("bsh,bshk,bshv->bhkv", w, k[:, : t + 1], v[:, : t + 1])
        C = C + w0[..., None, None] * C0
        h = jnp.einsum("bhk,bhkv->bhv", q[:, t], C)
        n = jnp.zeros_like(n0)
        if exponential:
            n = jnp.einsum("bsh,bshk->bhk", w, k[:, : t + 1]) + w0[..., None] * n0
            qn = jnp.abs(jnp.sum(q[:, t] * n, axis=-1))
            floor = jnp.exp(-jnp.maximum(m, -600.0))  # an output of 1e-260 is one of 0
            h = h / (jnp.where(qn > floor, qn, floor) + eps)[..., None]
        outputs.append(h)
    return jnp.stack(outputs, axis=1), C, n, m


def slstm(x, R, bias, c0, n0, h0, m0):
    """(h, c, n, last h, m): c and n are relative to m."""
    c, n, h, m = c0, n0, h0, m0
    outputs = []
    for t in range(x.shape[1]):
        i, f, z, o = (x[:, t, g] + jnp.einsum("bhv,hvw->bhw", h, R[g]) + bias[g] for g in range(4))
        i, f = finite(i, -(2.0**18), 2.0**16), finite(f, -(2.0**18), 1e9)
        log_f, empty = log_sigmoid(f), n == 0
        m_new = jax.lax.stop_gradient(jnp.where(empty, i, jnp.maximum(log_f + m, i)))
        write, keep = jnp.exp(i - m_new), jnp.exp(jnp.where(empty, -jnp.inf, log_f + m - m_new))
        c, n, m = keep * c + write * jnp.tanh(z), keep * n + write, m_new
        h = c / n / (1 + jnp.exp(-jnp.maximum(o, -700.0)))
        outputs.append(h)
    return jnp.stack(outputs, axis=1), c, n, h, m


def to_numpy(tree):
    """All leaves as float64 on the host."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
