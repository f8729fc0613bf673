"""The cells as the paper prints them, one token at a time and without a stabiliser: the reference
of every kernel test.

Nothing is shared with pallas_kernels. The states are the true ones, C·exp(m) and c·exp(m), which
float64 holds for gates of ±80. The same lines run on NumPy (values) and, as `xp`, on jax.numpy
inside a scan (gradients by autodiff, no custom rule).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def sigmoid(x, xp=np):
    """1 / (1 + exp(-x)), for any x, with numpy or jax.numpy."""
    return xp.exp(-xp.logaddexp(0.0, -x))


def _borders(segment, last):
    """start: drop the state first. real: not padding. last: the id that the next token is compared
    with.
    """
    real = segment >= 0
    return real & (last >= 0) & (segment != last), real


def mlstm_step(state, token, *, input_gate="exponential", eps=0.0, xp=np):
    """Equations 19-27. state: true C, true n, m (for eps alone), the last id."""
    C, n, m, last = state
    q, k, v, i, f, segment = token
    q = q / q.shape[-1] ** 0.5
    start, real = _borders(segment, last)
    keep = xp.where(start, 0.0, 1.0)[:, None]
    C, n, m = C * keep[..., None, None], n * keep[..., None], m * keep

    forget = sigmoid(f, xp)
    write = xp.exp(i) if input_gate == "exponential" else sigmoid(i, xp)
    C_new = forget[..., None, None] * C + write[..., None, None] * k[..., :, None] * v[..., None, :]
    n_new = forget[..., None] * n + write[..., None] * k
    m_new = xp.maximum(-xp.logaddexp(0.0, -f) + m, i)
    h = xp.sum(C_new * q[..., :, None], axis=-2)
    if input_gate == "exponential":
        h = (
            h
            / (xp.maximum(xp.abs(xp.sum(n_new * q, axis=-1)), 1.0) + eps * xp.exp(m_new))[..., None]
        )

    real = real[:, None]
    C, n = xp.where(real[..., None, None], C_new, C), xp.where(real[..., None], n_new, n)
    return (C, n, xp.where(real, m_new, m), xp.where(segment >= 0, segment, last)), xp.where(
        real[..., None], h, 0.0
    )


def slstm_step(state, token, R, bias, xp=np):
    """Equations 8-17. state: true c, true n, h, the last id."""
    c, n, h, last = state
    x, segment = token
    start, real = _borders(segment, last)
    keep = xp.where(start, 0.0, 1.0)[:, None, None]
    c, n, h = c * keep, n * keep, h * keep
    i, f, z, o = (x[:, g] + xp.einsum("bhv,hvw->bhw", h, R[g]) + bias[g] for g in range(4))
    c_new = sigmoid(f, xp) * c + xp.exp(i) * xp.tanh(z)
    n_new = sigmoid(f, xp) * n + xp.exp(i)
    h_new = sigmoid(o, xp) * c_new / n_new
    real = real[:, None, None]
    state = (xp.where(real, c_new, c), xp.where(real, n_new, n), xp.where(real, h_new, h))
    return (*state, xp.where(segment >= 0, segment, last)), xp.where(real, h_new, 0.0)


def _segments(inputs):
    batch, time = inputs["segment_ids"].shape
    return inputs["segment_ids"], inputs.get("previous_segment", np.full(batch, -1))


def _time_major(inputs, names, xp):
    return tuple(xp.moveaxis(inputs[name], 1, 0) for name in (*names, "segment_ids"))


def _mlstm_start(inputs, xp):
    C, n, m = (inputs[name] for name in ("C0", "n0", "m0"))
    return C * xp.exp(m)[..., None, None], n * xp.exp(m)[..., None], m, _segments(inputs)[1]


def mlstm_values(inputs, **options):
    """Plain NumPy: (h, true C, true n)."""
    state, outputs = _mlstm_start(inputs, np), []
    for token in zip(*_time_major(inputs, ("q", "k", "v", "i", "f"), np), strict=True):
        state, h = mlstm_step(state, token, **options)
        outputs.append(h)
    return np.stack(outputs, axis=1), state[0], state[1]


def slstm_values(inputs):
    """Plain NumPy: (h, true c, true n, last h)."""
    scale = np.exp(inputs["m0"])
    state, outputs = (
        (inputs["c0"] * scale, inputs["n0"] * scale, inputs["h0"], _segments(inputs)[1]),
        [],
    )
    for token in zip(*_time_major(inputs, ("x",), np), strict=True):
        state, h = slstm_step(state, token, inputs["R"], inputs["bias"])
        outputs.append(h)
    return np.stack(outputs, axis=1), *state[:3]


def _mlstm_traced(inputs, **options):
    step = functools.partial(mlstm_step, xp=jnp, **options)
    state, h = jax.lax.scan(
        step, _mlstm_start(inputs, jnp), _time_major(inputs, ("q", "k", "v", "i", "f"), jnp)
    )
    return jnp.moveaxis(h, 0, 1), state[0], state[1]


def _slstm_traced(inputs):
    scale = jnp.exp(inputs["m0"])
    state = (inputs["c0"] * scale, inputs["n0"] * scale, inputs["h0"], _segments(inputs)[1])
    step = functools.partial(slstm_step, R=inputs["R"], bias=inputs["bias"], xp=jnp)
    state, h = jax.lax.scan(step, state, _time_major(inputs, ("x",), jnp))
    return jnp.moveaxis(h, 0, 1), *state[:3]


def weighted(values, weights):
    """The loss of the gradient tests: every output entry times a fixed weight, the last state's
    included.
    """
    return sum(jnp.sum(value * weight) for value, weight in zip(values, weights, strict=True))


@functools.cache
def _gradient(cell, options):
    traced = {"mlstm": _mlstm_traced, "slstm": _slstm_traced}[cell]

    def loss(floats, integers, weights):
        return weighted(traced({**floats, **integers}, **dict(options)), weights)

    # compiles in half the time
    return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})


def gradients(cell, inputs, weights, **options):
    """Exact gradients of `weighted` for every float input, in float64."""
    floats = {name: x for name, x in inputs.items() if np.issubdtype(x.dtype, np.floating)}
    integers = {name: x for name, x in inputs.items() if name not in floats}
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, _gradient(cell, tuple(sorted(options.items())))(floats, integers, weights)
        )
