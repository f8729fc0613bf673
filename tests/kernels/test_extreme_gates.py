"""States, outputs and gradients for gates from -1e4 to 1e4 and at infinity, and for stabilisers of
a given state from -1e30 to 80: no form gives NaN, and none loses digits to a large number.

The judge is direct.py in float64. Everything else is in float32, whose `recurrent` is about 1e-6
off.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import MLSTMState, SLSTMState, mlstm, slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.testing import direct
from pallas_kernels.testing.cases import QUICK_COMPILE

INF, TIME = np.inf, 18
B, H, K, V = 1, 2, 4, 3
FORMS = {
    "recurrent": {"backend": "recurrent"},
    "parallel": {"backend": "parallel"},
    "chunkwise": {"backend": "chunkwise", "chunk_size": 6},
    "pallas_tpu": {"backend": "pallas_tpu"},
    "pallas_triton": {"backend": "pallas_triton", "chunk_size": 16},
}
TOLERANCE = 4e-6


def at(value, where=5, elsewhere=None):
    """Ordinary gates with one extreme among them."""
    gate = np.random.default_rng(3).normal(size=(B, TIME, H)) if elsewhere is None else elsewhere
    gate = np.array(gate)
    gate[:, where] = value
    return gate


def constant(value):
    return np.full((B, TIME, H), value)


def choice(*values, seed=0):
    return np.random.default_rng(seed).choice(values, size=(B, TIME, H))


def uniform(seed):
    r = np.random.default_rng(seed)
    return r.uniform(-1e4, 1e4, size=(B, TIME, H)).astype(np.float32)


INPUT, FORGET = at(0.3), at(1.5) + 1
FINITE = {
    "ordinary": (INPUT, FORGET),
    "f of -1e3": (INPUT, at(-1e3, elsewhere=FORGET)),
    "f of -1e4": (INPUT, at(-1e4, elsewhere=FORGET)),
    "f of -1e6": (INPUT, at(-1e6, elsewhere=FORGET)),
    "f of -1e8": (INPUT, at(-1e8, elsewhere=FORGET)),
    "two f of -1e4": (INPUT, at(-1e4, [3, 11], FORGET)),
    "f of -10": (INPUT, constant(-10.3)),
    "f of 1e4": (INPUT, constant(1e4)),
    "i of 1e4": (at(1e4), FORGET),
    "i of 1e4, then f of -1e4": (at(1e4), at(-1e4, 8, FORGET)),
    "i of -1e4": (at(-1e4), FORGET),
    "all i 1e4": (constant(1e4) + INPUT.astype(np.float32), FORGET),
    "all i -1e4": (constant(-1e4), FORGET),
    "all gates -100": (constant(-100.0), constant(-100.0)),
    "all gates 1e4": (constant(1e4), constant(1e4)),
    "both anything": (choice(-1e4, -100.0, 0.0, 1e4), choice(-1e4, -5.0, 5.0, 1e4, seed=1)),
    "both anywhere": (uniform(0), uniform(1)),
}
INFINITE = {
    "ordinary": (INPUT, FORGET),
    "f of -inf": (INPUT, at(-INF, elsewhere=FORGET)),
    "two f of -inf": (INPUT, at(-INF, [3, 11], FORGET)),
    "all f -inf": (INPUT, constant(-INF)),
    "f of +inf": (INPUT, at(INF, elsewhere=FORGET)),
    "i of -inf": (at(-INF), FORGET),
    "all i -inf": (constant(-INF), constant(-3.0)),
    "i of +inf": (at(INF), FORGET),
    "i of +inf, then f of -inf": (at(INF), at(-INF, 8, FORGET)),
    "both -inf": (at(-INF), at(-INF, elsewhere=FORGET)),
    "any": (choice(-INF, 0.0, 2.0, INF), choice(-INF, -1.0, 3.0, INF, seed=1)),
}
GATES = FINITE | INFINITE


def mlstm_inputs(gates, state=True):
    """No sign in q and k: n·q that cancels would blow up any form's rounding."""
    r = np.random.default_rng(0)
    i, f = GATES[gates]
    inputs = {
        "q": np.abs(r.normal(size=(B, TIME, H, K))) + 0.1,
        "k": np.abs(r.normal(size=(B, TIME, H, K))) + 0.1,
        "v": r.normal(size=(B, TIME, H, V)),
        "i": i,
        "f": f,
        "C0": r.normal(size=(B, H, K, V)),
        "n0": np.abs(r.normal(size=(B, H, K))),
        "m0": r.normal(size=(B, H)),
    }
    return {name: x.astype(np.float32) for name, x in inputs.items()}


def weights_of(cell):
    """Of h and the states in the loss."""
    states = {"mlstm": [(B, H, K, V), (B, H, K)], "slstm": [(B, H, V)] * 3}[cell]
    r = np.random.default_rng(1)
    return [r.normal(size=shape).astype(np.float32) for shape in ((B, TIME, H, V), *states)]


def loss_of(values, weights, m_judge):
    """Weighted outputs and last states; the memory and the normaliser relative to the judge's m."""
    h, *states, m = values
    # a true state of 0 has no digits, and one of exp(65,536) no meaning
    visible = (m_judge > -80) & (m_judge < 3e4)
    scale = jnp.where(visible, jnp.exp(jnp.where(visible, m - m_judge, 0)), 0)
    memory = [x * scale.reshape(*scale.shape, *[1] * (x.ndim - scale.ndim)) for x in states[:2]]
    states = memory + states[2:]  # the sLSTM's last h is no part of it
    return sum(jnp.sum(x * w) for x, w in zip([h, *states], weights, strict=True)), [h, *states]


def run_mlstm(inputs, form, input_gate):
    state = MLSTMState(inputs["C0"], inputs["n0"], inputs["m0"])
    tokens = [inputs[name] for name in ("q", "k", "v", "i", "f")]
    h, state = mlstm(*tokens, state, input_gate=input_gate, eps=0.0, **FORMS[form])
    return h, *state


def run_slstm(inputs, form, input_gate):
    state = SLSTMState(*(inputs[name] for name in ("c0", "n0", "h0", "m0")))
    h, state = slstm(inputs["x"], inputs["R"], inputs["bias"], state, backend=form)
    return h, state.c, state.n, state.h, state.m


@functools.cache
def differentiated(run, form, input_gate):
    """(inputs, weights, the judge's m) -> (values, gradients), compiled once for all gates."""

    def loss(inputs, weights, m_judge):
        return loss_of(run(inputs, form, input_gate), weights, m_judge)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)

    def call(*arguments):
        with interpreted(True):
            (_, values), gradients = compiled(*arguments)
        return direct.to_numpy(values), direct.to_numpy(gradients)

    return call


@functools.cache
def judge(cell, input_gate):
    """Compiled once for all gates."""
    run = (
        direct.slstm if cell == "slstm" else functools.partial(direct.mlstm, input_gate=input_gate)
    )

    def loss(inputs, weights):
        values = run(**inputs)
        m = jax.lax.stop_gradient(values[-1]).astype(jnp.float32).astype(jnp.float64)
        return loss_of(values, weights, m)[0], (loss_of(values, weights, m)[1], m)

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)


def expected(cell, inputs, weights, input_gate="exponential"):
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        gradients, (values, m) = judge(cell, input_gate)(wide, weights)
        return direct.to_numpy(values), direct.to_numpy(gradients), np.asarray(m)


def assert_same(got, want, names, tolerance, sizes=None):
    for name, x, y in zip(names, got, want, strict=True):
        assert np.isfinite(x).all(), f"{name} has NaN or infinity"
        size = max(np.abs(y).max(), (sizes or {}).get(name, 0), 1e-12)
        error = np.abs(x - y).max() / size
        assert error <= tolerance, f"{name}: {error:.1e} off"


def check_mlstm(gates, form, input_gate="exponential", tolerance=TOLERANCE, m0=None):
    inputs = mlstm_inputs(gates)
    if m0 is not None:
        inputs["m0"] = np.full_like(inputs["m0"], m0)
    if input_gate == "sigmoid":
        inputs["n0"], inputs["m0"] = 0 * inputs["n0"], 0 * inputs["m0"]
    weights = weights_of("mlstm")
    if input_gate == "sigmoid":
        weights[2] *= 0
    values, gradients, m = expected("mlstm", inputs, weights, input_gate)
    call = differentiated(run_mlstm, form, input_gate)
    got, got_gradients = call(inputs, weights, m.astype(np.float32))
    assert_same(got, values, ("h", "C", "n"), tolerance)
    sizes = {"f": np.abs(gradients["i"]).max()}  # df is a difference of sums of di's size
    if input_gate == "sigmoid":
        for name in ("n0", "m0"):
            np.testing.assert_array_equal(got_gradients.pop(name), 0)
            gradients.pop(name)
    names = sorted(got_gradients)
    flat = [[g[name] for name in names] for g in (got_gradients, gradients)]
    assert_same(*flat, names, 3 * tolerance, sizes)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
def test_mlstm(form, gates):
    check_mlstm(gates, form)


# The Pallas kernels and the sigmoid gate with the gates that go through different branches.
SOME = ("f of -1e4", "i of 1e4, then f of -1e4", "both anything", "f of -inf", "i of +inf", "any")


@pytest.mark.parametrize("form", ("pallas_tpu", "pallas_triton"))
def test_mlstm_kernels(form):
    for gates in SOME:
        check_mlstm(gates, form)


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
def test_sigmoid_input_gate(form):
    for gates in SOME:
        check_mlstm(gates, form, "sigmoid")


def test_sigmoid_input_gate_in_kernels():
    for form in ("pallas_tpu", "pallas_triton"):
        check_mlstm("both anything", form, "sigmoid")


@pytest.mark.parametrize(
    ("cell", "backend"), [("mlstm", None), ("mlstm", "pallas_triton"), ("slstm", None)]
)
def test_one_token_at_a_time(cell, backend):
    """Steps equal the judge, too."""
    cells = {"mlstm": functools.partial(mlstm, eps=0.0, backend=backend), "slstm": slstm}
    with interpreted(True):
        check_steps(cell, jax.jit(cells[cell]))


def check_steps(cell, step):
    for gates in ("f of -1e4", "all gates -100", "all i -inf", "f of -inf", "any"):
        inputs = mlstm_inputs(gates) if cell == "mlstm" else slstm_inputs(gates)
        (wanted, *_), _, _ = expected(cell, inputs, weights_of(cell))
        if cell == "mlstm":
            state = MLSTMState(inputs["C0"], inputs["n0"], inputs["m0"])
        else:
            state = SLSTMState(*(inputs[name] for name in ("c0", "n0", "h0", "m0")))
        outputs = []
        for t in range(TIME):
            if cell == "mlstm":
                token = [inputs[name][:, t : t + 1] for name in ("q", "k", "v", "i", "f")]
            else:
                token = [inputs["x"][:, t : t + 1], inputs["R"], inputs["bias"]]
            h, state = step(*token, state)
            outputs.append(np.asarray(h, np.float64))
        assert_same([np.concatenate(outputs, axis=1)], [wanted], ["h"], TOLERANCE)


def slstm_inputs(gates):
    """R leaves i and f alone: in float32 a gate of 1e4 plus R h is rounded to 1e-3."""
    r = np.random.default_rng(0)
    i, f = GATES[gates]
    x = r.normal(size=(B, TIME, 4, H, V))
    x[:, :, 0], x[:, :, 1] = i[..., None], f[..., None]
    inputs = {
        "x": x,
        "R": r.normal(size=(4, H, V, V)) * 0.3,
        "bias": np.zeros((4, H, V)),
        "c0": r.normal(size=(B, H, V)),
        "n0": r.uniform(0.5, 2, size=(B, H, V)),
        "h0": r.normal(size=(B, H, V)),
        "m0": r.normal(size=(B, H, V)),
    }
    inputs["R"][:2] = 0
    return {name: x.astype(np.float32) for name, x in inputs.items()}


def check_slstm(gates, backend, tolerance=TOLERANCE, m0=None):
    inputs = slstm_inputs(gates)
    if m0 is not None:
        inputs["m0"] = np.full_like(inputs["m0"], m0)
    weights = weights_of("slstm")
    values, gradients, m = expected("slstm", inputs, weights)
    call = differentiated(run_slstm, backend, "exponential")
    got, got_gradients = call(inputs, weights, m.astype(np.float32))
    assert_same(got, values, ("h", "c", "n", "last h"), tolerance)
    names = sorted(got_gradients)
    flat = [[g[name] for name in names] for g in (got_gradients, gradients)]
    sizes = {"m0": np.abs(gradients["c0"]).max()}  # dm0 = c0·dc0 + n0·dn0
    assert_same(*flat, names, 3 * tolerance, sizes)


@pytest.mark.parametrize("gates", GATES)
def test_slstm(gates):
    check_slstm(gates, "recurrent")


def test_slstm_kernel():
    for gates in SOME:
        check_slstm(gates, "pallas_tpu")


# -1e30 is "nothing remembered" written as a finite number; exp(80) is near float32's largest.
STABILISERS = (-1e30, -1e4, -88.0, 0.0, 80.0)


@pytest.mark.parametrize("m0", STABILISERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_given_with_any_stabiliser(form, m0):
    check_mlstm("ordinary", form, m0=m0)


@pytest.mark.parametrize("m0", STABILISERS)
def test_an_slstm_state_is_given_with_any_stabiliser(m0):
    check_slstm("ordinary", "recurrent", m0=m0)


def test_the_slstms_first_token_with_an_input_gate_of_minus_infinity():
    """h = o·tanh(z), as of any other i: 0/0 before."""
    x = jnp.zeros((1, 1, 4, 1, 1)).at[:, :, 0].set(-INF).at[:, :, 2].set(0.5)
    h, state = slstm(x, jnp.zeros((4, 1, 1, 1)), jnp.zeros((4, 1, 1)))
    np.testing.assert_allclose(h[0, 0, 0, 0], 0.5 * np.tanh(0.5), rtol=1e-6)
    assert np.isfinite(state.m).all()
