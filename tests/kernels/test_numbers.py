"""Numbers that went wrong without a word: denominators of 0, states beyond float16, garbage at
padding, sums over 65,536 tokens, x64 and jax's strict promotion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import linear_attention, mlstm, slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm.sequence_parallel import mlstm_sequence_parallel
from pallas_kernels.testing import cases
from pallas_kernels.testing.cases import MLSTM_BACKENDS

FORMS = (*MLSTM_BACKENDS, "pallas_tpu", "pallas_triton")


def ones(time, key_dim=1, value_dim=1, dtype="float32"):
    shapes = [(1, time, 1, width) for width in (key_dim, key_dim, value_dim)]
    return [jnp.ones(shape, dtype) for shape in shapes]


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_one_token_with_gates_of_minus_100(backend):
    """exp(-m) is infinite: h is 0, and so are the gradients."""
    gate = jnp.full((1, 1, 1), -100.0)

    def h(*x):
        return mlstm(*x, backend=backend)[0].sum()

    value, gradients = jax.jit(jax.value_and_grad(h, argnums=range(5)))(*ones(1), gate, gate)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("backend", FORMS)
def test_a_query_of_0_without_eps(backend):
    """m = 110 and eps = 0: exp(-m) is 0 in float32, h is 0 and not 0/0. T is no multiple of a
    chunk, so that tokens are filled up.
    """
    time, size = 40, 16
    ids = jnp.zeros((1, time), jnp.int32).at[:, 20].set(-1)
    q, k, v = ones(time, 16, 16)
    gate = jnp.full((1, time, 1), 110.0)

    def h(q, k, v, i, f):
        h, _ = mlstm(
            q, k, v, i, f, segment_ids=ids, eps=0.0, backend=backend,
            chunk_size=None if backend == "recurrent" else size,
        )  # fmt: skip
        return jnp.sum(h), h

    with interpreted(True):
        compiled = jax.jit(jax.value_and_grad(h, argnums=range(5), has_aux=True))
        (_, out), gradients = compiled(q.at[:, 7].set(0), k, v, gate, gate)
    np.testing.assert_array_equal(out[:, jnp.array([7, 20])], 0)
    np.testing.assert_allclose(out[:, 8], 1, rtol=1e-5)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("backend", FORMS)
def test_float16_holds_no_state(backend):
    """q = k = v = 100: C grows beyond float16's 65,504, h is 100."""
    if backend == "pallas_tpu":
        pytest.skip("pallas_tpu refuses float16; test_mlstm_pallas_tpu.py has that")
    q, k, v = (100 * x for x in ones(33, 16, 16, "float16"))
    gate = jnp.zeros((1, 33, 1))
    call = jax.jit(lambda *x: mlstm(*x, backend=backend, chunk_size=16)[0])
    with interpreted(True):
        h = call(q, k, v, gate, gate + 3)
    assert h.dtype == jnp.float16
    np.testing.assert_allclose(h, 100, rtol=1e-3)


@pytest.mark.parametrize("backend", ("recurrent", "chunkwise"))
def test_float16_holds_no_state_of_linear_attention(backend):
    """k = v = 100: S grows to 330,000, o stays below 16 * 0.001 * S."""
    q, k, v = (
        x * factor for x, factor in zip(ones(33, 16, 16, "float16"), (1e-3, 100, 100), strict=True)
    )
    call = jax.jit(lambda *x: linear_attention(*x, backend=backend)[0])
    o = call(q, k, v, jnp.zeros((1, 33, 1)))
    assert o.dtype == jnp.float16
    want = 16 * float(q[0, 0, 0, 0]) * 1e4 * np.arange(1, 34)
    np.testing.assert_allclose(o[0, :, 0, 0], want, rtol=1e-3)


@pytest.mark.parametrize("input_gate", ("exponential", "sigmoid"))
def test_gates_at_padding_may_be_nan_over_several_devices(input_gate):
    """df and di at padding are 0, elsewhere those without NaN."""
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("time",))
    spec = jax.sharding.PartitionSpec(None, "time")
    ids = jnp.asarray([[0, 0, -1, 0]])

    def call(q, k, v, i, f, ids):
        return mlstm_sequence_parallel(
            q, k, v, i, f, axis_name="time", segment_ids=ids, input_gate=input_gate
        )[0]

    run = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    gradients = jax.jit(jax.grad(lambda *x: jnp.sum(run(*x, ids) ** 2), argnums=range(5)))
    gate = np.zeros((1, 4, 1), np.float32)
    expected = gradients(*ones(4), gate, gate)
    gate[:, 2] = np.nan
    jax.tree.map(np.testing.assert_array_equal, gradients(*ones(4), gate, gate), expected)


def true_sum(time, f):
    """C·exp(m) after a first token with i = 15 and others with i = -10."""
    log_f = -np.logaddexp(0, -f)
    return np.exp(15 + log_f * (time - 1)) + np.exp(-10) * np.exp(log_f * np.arange(time - 1)).sum()


@pytest.mark.parametrize("form", ("recurrent", "chunkwise", "steps", "slstm"))
def test_a_state_does_not_drift(form):
    """65,536 tokens with a constant forget gate: 3 % off before, when m was rounded at each."""
    time = 65536

    @jax.jit
    def last(i, f):
        if form == "slstm":
            x = jnp.zeros((1, time, 4, 1, 1)).at[:, :, 0, 0].set(i).at[:, :, 1, 0].set(f)
            _, state = slstm(x, jnp.zeros((4, 1, 1, 1)), jnp.zeros((4, 1, 1)))
            return state.n, state.m
        if form == "steps":

            def step(state, gates):
                return mlstm(*ones(1), *gates, state)[1], None

            _, first = mlstm(*ones(1), i[:, :1], f[:, :1])
            rest = [jnp.moveaxis(x[:, 1:], 1, 0)[..., None] for x in (i, f)]
            state, _ = jax.lax.scan(step, first, rest)
        else:
            _, state = mlstm(*ones(time), i, f, backend=form)
        return state.C, state.m

    i = np.full((1, time, 1), -10, np.float32)
    i[:, 0] = 15
    # one token at a time m has no second part, and a factor near 1 is rounded 65,536 times
    tolerance = 1.2e-3 if form in ("steps", "slstm") else 5e-4
    for f in (11, 9):
        got, m = (float(x.ravel()[0]) for x in last(i, np.full_like(i, f)))
        np.testing.assert_allclose(got * np.exp(m), true_sum(time, f), rtol=tolerance)


CELLS = {f"mlstm {name}": ("mlstm", {"backend": name}) for name in FORMS}
CELLS |= {"slstm": ("slstm", {}), "slstm pallas_tpu": ("slstm", {"backend": "pallas_tpu"})}


@pytest.mark.parametrize("cell", CELLS)
def test_float32_stays_float32_under_x64_and_strict_promotion(cell):
    """Values, states and gradients keep their types with jax_enable_x64, and no array is promoted
    in rank or type without saying so. With documents; int64 ids too. Tracing shows it.
    """
    kind, options = CELLS[cell]
    make = {"mlstm": cases.mlstm_inputs, "slstm": cases.slstm_inputs}[kind]
    sizes = {"key_dim": 16, "value_dim": 16} if kind == "mlstm" else {"value_dim": 16}
    inputs = make(20, **sizes) | cases.random_documents(20)
    inputs = cases.in_dtype(inputs, "float32")
    run = {"mlstm": cases.run_mlstm, "slstm": cases.run_slstm}[kind]
    floats = {name: x for name, x in inputs.items() if x.dtype == jnp.float32}

    def loss(floats, ids):
        h, state = run(inputs | floats | ids, True, **options)
        return sum(jnp.sum(x**2) for x in (h, *state[:2])), (h, state)

    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        interpreted(True),
    ):
        names = ("segment_ids", "previous_segment")
        ids = {name: jnp.asarray(np.asarray(inputs[name]), jnp.int64) for name in names}
        gradients, (h, state) = jax.eval_shape(jax.grad(loss, has_aux=True), floats, ids)
    for x in jax.tree.leaves((gradients, h, state)):
        assert x.dtype == jnp.float32
