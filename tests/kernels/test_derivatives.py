"""First, second and forward-mode derivatives of every public function, against finite differences
in float64 with the XLA backends; the Pallas cells refuse all but gradients, by name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import MLSTMState, SLSTMState, mlstm, sharded, slstm
from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm.sequence_parallel import mlstm_sequence_parallel
from pallas_kernels.testing import cases
from pallas_kernels.testing.cases import MLSTM_BACKENDS

TIME, K, V = 7, 2, 3
IDS = np.array([[0, 0, 1, 1, -1, 1, 2]])


def sequence_parallel(*arrays, segment_ids, **options):
    """On one device: the summary and what is put together from it are the same as on many."""
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("time",))
    call = functools.partial(mlstm_sequence_parallel, axis_name="time", **options)
    spec = jax.sharding.PartitionSpec()
    run = jax.shard_map(
        lambda ids, *x: call(*x, segment_ids=ids),
        mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False,
    )  # fmt: skip
    return run(segment_ids, *arrays)


CELLS = {
    **{f"mlstm {name}": (mlstm, "mlstm", {"backend": name}) for name in MLSTM_BACKENDS},
    **{
        f"mlstm {name} sigmoid": (mlstm, "mlstm", {"backend": name, "input_gate": "sigmoid"})
        for name in MLSTM_BACKENDS
    },
    "sequence_parallel": (sequence_parallel, "mlstm", {"backend": "recurrent"}),
    "sharded mlstm": (sharded.mlstm, "mlstm", {"backend": "chunkwise"}),
    "slstm": (slstm, "slstm", {}),
    "sharded slstm": (sharded.slstm, "slstm", {}),
}
STATES = {
    "mlstm": (MLSTMState, 5, ("C0", "n0", "m0")),
    "slstm": (SLSTMState, 3, "c0 n0 h0 m0".split()),
}
QUICK = ("mlstm chunkwise", "slstm")
every_cell = pytest.mark.parametrize(
    "cell",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CELLS],
)


def function_of(cell):
    """(a scalar of all outputs and of the last true state, a point)."""
    run, kind, options = CELLS[cell]
    state_type, count, names = STATES[kind]
    inputs = {
        "mlstm": lambda: cases.mlstm_inputs(TIME, key_dim=K, value_dim=V, batch=1, heads=1),
        "slstm": lambda: cases.slstm_inputs(TIME, value_dim=2, batch=1, heads=1),
    }[kind]()
    tokens = ("q", "k", "v", "i", "f") if kind == "mlstm" else ("x", "R", "bias")
    point = [jnp.asarray(inputs[name]) for name in (*tokens, *names)]
    if kind == "mlstm" and options.get("backend") == "chunkwise":
        options = options | {"chunk_size": 3}
    if kind == "mlstm":
        options = options | {"eps": 0.0}

    def function(*x):
        h, state = run(*x[:count], state_type(*x[count:]), segment_ids=jnp.asarray(IDS), **options)
        values = cases.true_values(kind, (h, state))
        return sum(jnp.sum(jnp.sin(value + 0.3)) for value in values)

    return function, point


def directions(point, seed):
    r = np.random.default_rng(seed)
    return [jnp.asarray(r.normal(size=x.shape)) for x in point]


def differences(function, point, u, v):
    """The slope along u, and how it changes along v: differences of five points."""

    @functools.partial(jax.jit, compiler_options=cases.QUICK_COMPILE)
    def moved(s, t):
        return function(*(x + s * a + t * b for x, a, b in zip(point, u, v, strict=True)))

    def slope(f, step):
        return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)

    def along_u(t):
        return slope(lambda s: moved(s, t), 1e-4)

    return along_u(0.0), slope(along_u, 2e-3)


@every_cell
def test_every_derivative_is_the_finite_difference(cell):
    with jax.enable_x64(True):
        function, point = function_of(cell)
        u, v = directions(point, 1), directions(point, 2)
        gradient = jax.grad(function, argnums=range(len(point)))

        def dot(x, y):
            return sum(jnp.sum(a * b) for a, b in zip(x, y, strict=True))

        @functools.partial(jax.jit, compiler_options=cases.QUICK_COMPILE)
        def derivatives(*point):
            def slope(*x):  # along u
                return jax.jvp(function, x, tuple(u))[1]

            return {
                "reverse": dot(gradient(*point), u),
                "forward": slope(*point),
                "linearize": jax.linearize(function, *point)[1](*u),
                "forward over reverse": dot(jax.jvp(gradient, point, tuple(v))[1], u),
                "reverse over reverse": dot(
                    jax.grad(lambda *x: dot(gradient(*x), u), range(len(point)))(*point), v
                ),
                "reverse over forward": dot(jax.grad(slope, range(len(point)))(*point), v),
                "forward over forward": jax.jvp(slope, point, tuple(v))[1],
            }

        got = derivatives(*point)
        first, second = differences(function, point, u, v)
        for name, value in got.items():
            expected = second if "over" in name else first
            np.testing.assert_allclose(value, expected, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("backend", MLSTM_BACKENDS)
def test_the_second_derivative_of_a_scalar_through_k(backend):
    """grad of grad at k = [x, x²]: -0.265, by finite differences."""
    with jax.enable_x64(True):

        def h(x):
            def ones(*values):
                return jnp.stack([jnp.asarray(v, float) for v in values]).reshape(1, 2, 1, 1)

            gates = jnp.full((1, 2, 1), 3.0), jnp.full((1, 2, 1), 2.0)
            h, _ = mlstm(ones(1, 1), ones(x, x**2), ones(1, 2), *gates, backend=backend)
            return h[0, -1, 0, 0]

        step = 1e-4
        second, below, above = jax.jit(
            lambda x: (jax.grad(jax.grad(h))(x), *map(jax.grad(h), (x - step, x + step)))
        )(1.0)
        difference = (above - below) / (2 * step)
        np.testing.assert_allclose(second, difference, rtol=1e-6)
        np.testing.assert_allclose(second, -0.265, atol=1e-3)


@pytest.mark.parametrize("cell", ("mlstm chunkwise", "mlstm recurrent", "slstm"))
def test_hessian_and_vmap(cell):
    """jax.hessian, of a batch too, equals jacrev of jacrev of each row."""
    with jax.enable_x64(True):
        function, point = function_of(cell)

        def of_first(scale):
            return function(point[0] * scale[0], point[1] * scale[1], *point[2:])

        rows = jnp.asarray([[1.0, 1.1], [0.7, -0.4]])
        hessian = jax.jit(jax.vmap(jax.hessian(of_first)), compiler_options=cases.QUICK_COMPILE)
        one_by_one = jax.jit(jax.jacrev(jax.jacrev(of_first)), compiler_options=cases.QUICK_COMPILE)
        for got, row in zip(hessian(rows), rows, strict=True):
            np.testing.assert_allclose(got, one_by_one(row), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", (*MLSTM_BACKENDS, "slstm"))
def test_vmap_of_a_cell_is_a_loop(backend):
    """Over inputs, weights or neither; values and gradients."""
    cell = "slstm" if backend == "slstm" else f"mlstm {backend}"
    with jax.enable_x64(True):
        function, point = function_of(cell)
        many = [np.stack([x, 0.5 * x, -x]) for x in map(np.asarray, point[:2])]
        both = jax.value_and_grad(lambda x, y: function(x, y, *point[2:]), argnums=(0, 1))
        one = jax.jit(both, compiler_options=cases.QUICK_COMPILE)
        for axes, rows in (((0, 0), many), ((0, None), [many[0], point[1]])):
            got = jax.jit(jax.vmap(both, axes), compiler_options=cases.QUICK_COMPILE)(*rows)
            for n in range(3):
                row = [x if axis is None else x[n] for x, axis in zip(rows, axes, strict=True)]
                for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(one(*row)), strict=True):
                    np.testing.assert_allclose(x[n], y, rtol=1e-9, atol=1e-12)


def test_a_tie_of_n_q_and_the_floor_is_the_floors():
    """At |n·q| = exp(-m) exactly, no form has a gradient of n·q: h is then linear in q."""
    one, zero = jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1))
    for backend in MLSTM_BACKENDS:

        def h(q, v, backend=backend):
            return mlstm(q, one, v, zero, zero, backend=backend, eps=0.0)[0].sum()

        gradient = jax.jit(jax.grad(h))
        np.testing.assert_array_equal(gradient(one, 3 * one), 3, err_msg=backend)
        np.testing.assert_array_equal(gradient(2 * one, 3 * one), 0, err_msg=backend)


REFUSED = {
    "mlstm pallas_tpu": ("mlstm", {"backend": "pallas_tpu"}, "chunkwise"),
    "mlstm pallas_triton": ("mlstm", {"backend": "pallas_triton"}, "chunkwise"),
    "slstm pallas_tpu": ("slstm", {"backend": "pallas_tpu"}, "recurrent"),
}


@pytest.mark.parametrize("cell", REFUSED)
def test_pallas_cells_refuse_what_they_cannot(cell):
    """And say which backend can; gradients they have."""
    kind, options, able = REFUSED[cell]
    if kind == "mlstm":
        inputs = cases.mlstm_inputs(3, key_dim=16, value_dim=16, batch=1, heads=1)
    else:
        inputs = cases.slstm_inputs(3, value_dim=8, batch=1, heads=1)
    inputs = cases.in_dtype(inputs, "float32")
    run = {"mlstm": cases.run_mlstm, "slstm": cases.run_slstm}[kind]
    name = {"mlstm": "v", "slstm": "x"}[kind]

    def function(x):
        return jnp.sum(run(inputs | {name: x}, **options)[0] ** 2)

    x = inputs[name]
    calls = {
        "jvp": lambda: jax.jvp(function, (x,), (x,)),
        "jvp in jit": lambda: jax.jit(lambda x: jax.jvp(function, (x,), (x,)))(x),
        "hessian": lambda: jax.jit(lambda x: jax.jvp(jax.grad(function), (x,), (x,)))(x),
        "grad of grad": lambda: jax.grad(lambda x: jnp.sum(jax.grad(function)(x)))(x),
    }
    with interpreted(True):
        for call in calls.values():
            with pytest.raises(TypeError, match=f'{options["backend"]}.*backend="{able}"'):
                call()


def test_forward_mode_has_no_gradient_to_clip():
    x, R, bias = jnp.ones((1, 2, 4, 1, 2)), jnp.ones((4, 1, 2, 2)), jnp.ones((4, 1, 2))
    with pytest.raises(TypeError, match="recurrent_gradient_clip is 10"):
        jax.jvp(lambda x: slstm(x, R, bias, recurrent_gradient_clip=10.0)[0], (x,), (x,))
