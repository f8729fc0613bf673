"""What a GPU computes is what a CPU computes: block-diagonal maps and the norm of heads, their
derivatives of every kind, on one device and on a mesh.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.interpret import interpreted
from pallas_kernels.mlstm import api as mlstm_api
from pallas_kernels.row_norm import api as norm_api
from xlstm_jax.config import MeshConfig, ModelConfig
from xlstm_jax.models import (
    backbone,
    build_model,
    conv,
    cpu_forms,
    gpu_forms,
    layers,
    mlstm_cell,
)
from xlstm_jax.models.backbone import Backbone
from xlstm_jax.models.initializers import ones
from xlstm_jax.models.layers import BlockDiagonalProjection, normalize
from xlstm_jax.parallel import make_mesh


def reference(x, kernel):
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return jnp.einsum("btni,nio->btno", blocks, kernel).reshape(x.shape)


def draw(batch=2, time=6, num_blocks=24, size=4, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=shape).astype(dtype)
        for shape in ((batch, time, num_blocks * size), (num_blocks, size, size))
        for _ in range(2)
    ]


def derivatives(function, inputs, moves):
    """Value and tangent, gradients, and the gradient of a function of the gradients."""
    everything = tuple(range(len(inputs)))

    def loss(*inputs):
        return jnp.sum(jnp.sin(function(*inputs)))

    def slope(*inputs):
        return sum(jnp.sum(part**2) for part in jax.grad(loss, everything)(*inputs))

    return jax.jit(
        lambda: (
            *jax.jvp(function, inputs, moves),
            jax.grad(loss, everything)(*inputs),
            jax.grad(slope, everything)(*inputs),
        )
    )()


def assert_same(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


@pytest.mark.parametrize(("num_blocks", "size"), [(24, 4), (5, 3), (1, 20)])
def test_block_diagonal_maps_and_all_their_derivatives(num_blocks, size):
    with jax.enable_x64(True):
        x, move, kernel, kernel_move = draw(num_blocks=num_blocks, size=size)
        found, expected = (
            derivatives(form, (x, kernel), (move, kernel_move))
            for form in (gpu_forms.block_diagonal_product, reference)
        )
        assert_same(found, expected, 1e-11)


def test_products_of_one_input_and_all_their_derivatives():
    def side_by_side(form):
        return lambda x, *kernels: jnp.concatenate(form(x, kernels), axis=-1)

    def plain(x, kernels):
        return [x @ kernel for kernel in kernels]

    rng = np.random.default_rng(0)
    shapes = ((10, 8), (8, 4), (8, 4), (8, 6), (8, 1))
    with jax.enable_x64(True):
        inputs, moves = (tuple(rng.normal(size=shape) for shape in shapes) for _ in range(2))
        found, expected = (
            derivatives(side_by_side(form), inputs, moves)
            for form in (gpu_forms.products_of_one_input, plain)
        )
        assert_same(found, expected, 1e-11)

    def loss(*inputs):
        outputs = gpu_forms.products_of_one_input(inputs[0], inputs[1:])
        return sum(jnp.sum(jnp.sin(y)) for y in outputs)

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=range(5)))(*inputs))
    assert program.count("dot_general[") == 4 + 2  # the outputs; of x, of all kernels


@pytest.mark.parametrize(("time", "width"), [(9, 4), (64, 4), (3, 1)])
def test_a_convolution_and_all_its_derivatives(time, width):
    def plain(inputs, kernel, bias):
        return bias + sum(inputs[:, tap : tap + time] * kernel[tap] for tap in range(width))

    rng = np.random.default_rng(0)
    shapes = ((2, width - 1 + time, 8), (width, 8), (8,))
    with jax.enable_x64(True):
        inputs, moves = (tuple(rng.normal(size=shape) for shape in shapes) for _ in range(2))
        found, expected = (
            derivatives(form, inputs, moves) for form in (gpu_forms.sum_of_taps, plain)
        )
        assert_same(found, expected, 1e-11)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gate_of_one_token(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 1, 48)), dtype)
    kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((48, 4), (4,)))
    expected = cpu_forms.gate_preactivations([x], [kernel], bias)
    found = gpu_forms.gate_of_token(x, kernel, bias)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mlstm", "mlstm_7b"])
def test_tokens_one_by_one_on_a_gpu_are_the_sequence(mixer, monkeypatch):
    """The step's kernel, the gates of one token and the norm of one row, inside the blocks; the row
    begins another document on its way.
    """
    blocks = {"num_heads": 2, "input_gate_bias_std": 0.5}
    config = ModelConfig(
        vocab_size=23, dim=32, num_blocks=2, blocks=mixer, dtype="float32", mixers={mixer: blocks}
    )
    model = build_model(config)
    tokens = jax.random.randint(jax.random.key(1), (1, 9), 0, 23)
    ids = jnp.array([[0] * 4 + [1] * 5])
    params = nn.meta.unbox(model.init(jax.random.key(0), tokens))["params"]
    leaves, tree = jax.tree.flatten(params)  # kernels of gates begin at zero
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    expected, last = model.apply({"params": params}, tokens, segments=ids)

    for module in (mlstm_cell, layers, backbone):
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    monkeypatch.setattr(mlstm_api, "STEP_ORDER", {"cpu": ("pallas_triton",)})
    monkeypatch.setattr(norm_api, "ORDER", {"cpu": ("pallas_triton", "plain")})
    step = jax.jit(
        lambda token, state, ids: model.apply({"params": params}, token, state, segments=ids)
    )
    state, found = model.init_state(1), []
    with interpreted(True):
        for t in range(9):
            logits, state = step(tokens[:, t : t + 1], state, ids[:, t : t + 1])
            found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=1e-4, atol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.shape, y.shape), state, last)


@pytest.mark.parametrize("center", [True, False])
def test_the_norm_of_heads_and_all_its_derivatives(center):
    def plain(h, scale):
        return normalize(h, 1e-3, center=center).reshape(*h.shape[:2], -1) * scale

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        inputs, moves = ((3 + rng.normal(size=(2, 5, 3, 4)), rng.normal(size=12)) for _ in range(2))
        found, expected = (
            derivatives(form, inputs, moves)
            for form in (lambda h, scale: gpu_forms.head_norm(h, scale, 1e-3, center=center), plain)
        )
        assert_same(found, expected, 1e-9)
    low = gpu_forms.head_norm(
        jnp.asarray(inputs[0], jnp.bfloat16), jnp.ones(12), 1e-3, center=center
    )
    assert low.dtype == jnp.bfloat16 and low.shape == (2, 5, 12)


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_the_norm_of_heads_keeps_its_digits(far):
    """Its mean is measured from the first channel: where that is as far from all others as one
    can be, sqrt(V - 1) standard deviations, and where all are far from zero.
    """
    h = np.full((1, 1, 1, 1024), far) + 1e-3 * np.random.default_rng(0).normal(size=1024)
    h[..., 0] += 30
    h = h.astype(np.float32)
    exact = h.astype(np.float64) - h.astype(np.float64).mean(axis=-1, keepdims=True)
    exact = (exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-6)).reshape(1, 1, -1)
    found = gpu_forms.head_norm(jnp.asarray(h), jnp.ones(1024), 1e-6, center=True)
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()


def test_bfloat16_is_rounded_once():
    """Products and sums, over channels and over tokens, are in float32."""
    x, dy, kernel, _ = (jnp.asarray(a, jnp.bfloat16) for a in draw(time=64, dtype=np.float32))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(function, x, kernel, dy):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(dy)

    y, dx, d_kernel = gradients(gpu_forms.block_diagonal_product, x, kernel.astype(np.float32), dy)
    exact = gradients(reference, *(a.astype(np.float32) for a in (x, kernel, dy)))
    for found, expected in zip((y, dx, d_kernel), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-5)
    assert (y.dtype, dx.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("axes", [{"data": 4, "tensor": 2}, {"data": 2, "sequence": 4}])
def test_a_mesh_changes_nothing(axes):
    x, dy, kernel, _ = draw(batch=4, time=8, dtype=np.float32)
    mesh = make_mesh(MeshConfig(**axes))

    def gradients(x, kernel, dy):
        y, pull = jax.vjp(gpu_forms.block_diagonal_product, x, kernel)
        return y, *pull(dy)

    expected = jax.jit(gradients)(x, kernel, dy)
    spread = [
        jax.device_put(x, NamedSharding(mesh, P("data", "sequence", "tensor"))),
        jax.device_put(kernel, NamedSharding(mesh, P("tensor"))),
        jax.device_put(dy, NamedSharding(mesh, P("data", "sequence", "tensor"))),
    ]
    with jax.set_mesh(mesh):
        found = jax.jit(gradients)(*spread)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "batched"), [("gpu", False), ("tpu", True), ("cpu", True)])
def test_gpus_have_no_products_of_tiny_matrices(platform, batched):
    """The layer asks for what the device that the program is for does best (1,536 channels)."""
    device = jax.sharding.AbstractDevice(
        device_kind=f"some {platform}", num_cores=None, platform=platform
    )
    layer = BlockDiagonalProjection(1536, 4, ones)
    x, kernel = jnp.zeros((1, 2, 1536)), jnp.zeros((384, 4, 4))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        program = jax.make_jaxpr(lambda x, k: layer.apply({"params": {"kernel": k}}, x).value)(
            x, kernel
        )
    assert ("dot_general" in str(program)) == batched


@pytest.mark.parametrize("mixer", ["mlstm", "mlstm_7b"])
def test_a_block_computes_the_same_with_the_forms_of_a_gpu(mixer, monkeypatch):
    """In float32, its gradients by all parameters."""
    config = ModelConfig(
        dim=16, num_blocks=1, vocab_size=8, blocks=mixer, mixers={mixer: {"num_heads": 2}}
    )
    backbone, x = Backbone(config), jnp.sin(jnp.arange(2 * 5 * 16.0)).reshape(2, 5, 16)
    params = backbone.init(jax.random.key(0), x)

    def gradients():
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(backbone.apply(p, x)[0]))))(params)

    expected = gradients()
    for module in (layers, conv, cpu_forms):
        monkeypatch.setattr(module, "platform", lambda: "gpu")
    assert_same(gradients(), expected, 1e-5)
