"""The mLSTM blocks with what stands before and behind the cell as one kernel each (interpreted
here) are the blocks of layers: results, gradients, states, meshes. Gates see what the memory sees;
`model.remat` keeps what it says.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.interpret import interpreted
from tests.models.test_registry import small, trees_are_close
from xlstm_jax.config import MeshConfig
from xlstm_jax.models import build_model
from xlstm_jax.models import mlstm_back as back_of_model
from xlstm_jax.models import mlstm_front as front_of_model
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import BlockDiagonalProjection, Fused, normalize
from xlstm_jax.models.mixer import ONE_DOCUMENT, Depth, Segments
from xlstm_jax.models.mixers.mlstm import MLSTM, MLSTMConfig, empty_state
from xlstm_jax.models.mixers.mlstm_7b import MLSTM7B, MLSTM7BConfig
from xlstm_jax.models.mlstm_cell import gate_weights, gates_of, value_of
from xlstm_jax.models.mlstm_front import fused_front
from xlstm_jax.parallel import make_mesh

SETTINGS = MLSTMConfig(num_heads=2)
LAYER = MLSTM(SETTINGS, 32, Depth(0, 1))
OF_7B = MLSTM7B(MLSTM7BConfig(num_heads=2), 32, Depth(0, 1))
FRONT, BACK = {"mlstm_front", "mlstm_front_back"}, {"mlstm_back", "mlstm_back_back"}
IDS = np.array([[0, 0, -1, 1, 1, 1, 1], [3, 3, 3, 3, 4, -1, 4]], np.int32)


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def params_of(layer):
    x = draw((1, 2, layer.dim), 0)
    variables = nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
    return jax.tree.map(lambda x: 0.4 * draw(x.shape, x.size), variables)


@pytest.fixture(scope="module")
def params():
    return params_of(LAYER)


def results(params, x, segments=ONE_DOCUMENT, state=None, layer=LAYER):
    """Output, state after the last token, gradients; the kernels in the program."""

    def loss(params, x):
        y, after = layer.apply(params, x, state, segments)
        cell = jax.tree.leaves(after)
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.sin(part)) for part in cell[:2]), (y, after)

    function = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    names = set(re.findall(r"mlstm_(?:front|back)\w*", str(jax.make_jaxpr(function)(params, x))))
    return function(params, x), names


def test_results_gradients_and_states(params):
    x, state = draw((2, 7, 32), 1), empty_state(SETTINGS, 32, 2, jnp.float32, None)
    state = state._replace(conv=draw(state.conv.shape, 2))
    given = x, Segments(IDS, np.array([0, 3], np.int32)), state
    expected, none = results(params, *given)
    with interpreted():
        found, names = results(params, *given)
    assert not none
    assert names == FRONT | BACK
    trees_are_close(found, expected, 2e-5)


@pytest.mark.parametrize("layer", [LAYER, OF_7B], ids=["paper", "7b"])
def test_one_token_of_each_row_is_left_to_xla(layer):
    with interpreted():
        _, names = results(params_of(layer), draw((16, 1, 32), 1), layer=layer)
    assert not names


@pytest.mark.parametrize("seven", [False, True], ids=["paper", "7b"])
def test_the_tpus_kernels_in_a_block(seven, monkeypatch):
    """Interpreted, a block takes Triton's kernels first; these are the others."""
    for module in (front_of_model, back_of_model):
        monkeypatch.setattr(module, "KERNELS", ("pallas_tpu",))
    layer = (
        MLSTM7B(OF_7B.settings, 256, Depth(0, 1)) if seven else MLSTM(SETTINGS, 128, Depth(0, 1))
    )
    x = draw((2, 7, layer.dim), 1)
    params = jax.tree.map(lambda w: w / 4, params_of(layer))
    given = x, Segments(IDS, np.array([0, 3], np.int32))
    expected, none = results(params, *given, layer=layer)
    with interpreted():
        found, names = results(params, *given, layer=layer)
    assert not none and names == (BACK if seven else FRONT | BACK)
    trees_are_close(found, expected, 2e-5)


def test_the_block_of_the_7b_model():
    """It has no front, and a sigmoid as gate."""
    params, x = params_of(OF_7B), draw((2, 7, 32), 1)
    given = x, Segments(IDS, np.array([0, 3], np.int32))
    expected, none = results(params, *given, layer=OF_7B)
    with interpreted():
        found, names = results(params, *given, layer=OF_7B)
    assert not none and names == BACK
    trees_are_close(found, expected, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "rows", "kernels"),
    [
        ({"data": 2, "fsdp": 2}, ("data", "fsdp"), FRONT | BACK),
        ({"data": 2, "tensor": 2}, "data", BACK),
    ],
    ids=["rows", "rows and heads"],
)
def test_each_device_has_its_part(params, axes, rows, kernels):
    """The batch is spread over devices and the weights are not; where channels are, the front stays
    layers, and what is behind the cell does not.
    """
    x = draw((4, 3, 32), 3)
    expected, _ = results(params, x)
    mesh = make_mesh(MeshConfig(**axes))
    with interpreted(), jax.set_mesh(mesh):
        found, names = results(params, jax.device_put(x, NamedSharding(mesh, P(rows))))
    assert names == kernels
    trees_are_close(found, expected, 2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "chunkwise"},
        {"input_gate_from": "bias", "forget_gate_from": "bias"},
        {"input_gate_from": "bias"},
        {"conv_width": 0},
    ],
)
def test_who_gets_the_layers(changes):
    """One who asks for an XLA form, and blocks without gates of the text; one gate is enough."""
    settings = dataclasses.replace(SETTINGS, **changes)
    layer, x = MLSTM(settings, 32, Depth(0, 1)), jnp.zeros((1, 2, 32))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    with interpreted():
        program = str(jax.make_jaxpr(layer.apply)(nn.meta.unbox(params), x))
    assert ("mlstm_front" in program) == (len(changes) == 1 and "backend" not in changes)
    assert ("mlstm_back" in program) == ("backend" not in changes)


@pytest.mark.parametrize(
    ("platform", "kind"), [("tpu", "TPU v5p"), ("gpu", "NVIDIA H100"), ("cpu", "cpu")]
)
@pytest.mark.parametrize("seven", [False, True], ids=["paper", "7b"])
def test_what_a_device_gets(platform, kind, seven):
    """The kernels of the device that a program is lowered for; on a CPU none."""
    layer = (
        MLSTM7B(MLSTM7BConfig(num_heads=2), 256, Depth(0, 1))
        if seven
        else MLSTM(SETTINGS, 128, Depth(0, 1))
    )
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    x = jax.ShapeDtypeStruct((1, 16, layer.dim), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        params = nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
        program = jax.make_jaxpr(layer.apply)(params, x)
    names = [name for name in kernels_of(program.jaxpr) if not name.startswith("mlstm_forward")]
    expected = ["mlstm_back"] if seven else ["mlstm_front", "mlstm_back"]
    assert [name for name in names if name in expected] == ([] if platform == "cpu" else expected)


class Gates(nn.Module):
    """The front, perhaps with a norm on q and k behind it, and the gates."""

    normed: bool

    @nn.compact
    def __call__(self, u):
        inner = u.shape[-1]
        maps = [BlockDiagonalProjection(inner, 4, small_init(8), name=name) for name in "qkv"]
        weights = gate_weights(self, SETTINGS, 3 * inner)
        q, k, v = fused_front(SETTINGS, jnp.sin(u), u, maps, weights)
        assert isinstance(q, Fused)
        if self.normed:
            q, k = (normalize(x.value, 1e-6, center=False) for x in (q, k))
        gates = gates_of(self, weights, q, k, v)
        return gates, [value_of(x) for x in (q, k, v)]


@pytest.mark.parametrize("normed", [False, True])
def test_gates_see_what_the_memory_sees(normed):
    u, model = draw((2, 5, 16), 4), Gates(normed)
    with interpreted():
        shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), u))
        variables = jax.tree.map(lambda x: draw(x.shape, x.size), shapes)
        gates, values = jax.jit(model.apply)(variables, u)
    for name, found in zip(("input_gate", "forget_gate"), gates, strict=True):
        gate = variables["params"][name]
        expected = jnp.concatenate(values, axis=-1) @ gate["kernel"] + gate["bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def kernels_of(jaxpr):
    """The names of the Pallas kernels that a program calls, as often as it does."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield str(eqn.params.get("name", eqn.params.get("name_and_src_info"))).split()[0]
        else:
            parts = jax.tree.leaves(
                list(eqn.params.values()),
                is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
            )
            for part in (getattr(part, "jaxpr", part) for part in parts):
                yield from kernels_of(part) if hasattr(part, "eqns") else ()


@pytest.mark.parametrize(
    ("remat", "kernel", "times"),
    [
        ("conv", "mlstm_front", 2),
        ("qkv", "mlstm_front", 1),
        ("conv+qkv", "mlstm_front", 1),
        ("conv+qkv", "mlstm_back", 2),
        ("operands", "mlstm_back", 1),
    ],
)
def test_what_is_kept_is_not_computed_again(remat, times, kernel):
    """The kernels make q, k, v and gates, and what enters the last product: they run again unless
    these are kept.
    """
    config = dataclasses.replace(small("mlstm"), remat=remat)
    model, tokens = build_model(config), jnp.zeros((1, 3), jnp.int32)
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    with interpreted():
        program = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(model.apply(p, tokens)[0])))(params)
    assert list(kernels_of(program.jaxpr)).count(kernel) == times
