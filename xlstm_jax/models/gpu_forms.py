"""Plain expressions, written so that XLA's GPU backend computes them and their gradients fast; what
other devices compile is in `cpu_forms`. Times are modelled for an H100 (`analysis.compiled`).

As there, every function can be differentiated in every mode and as often as wished.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.derivatives import with_backward
from xlstm_jax.parallel import num_shards
from xlstm_jax.typing import Array, Float, HeadActivations

SMALL_BLOCK = 16  # at most so many channels of a block: no product of matrices
GROUP_CHANNELS = 64  # channels of one product in the kernel's gradient


def block_diagonal_product(
    x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]
) -> Float[Array, "B T I"]:
    """Each block of i neighbouring channels times its own [i o] matrix; sums in float32 or better,
    the result in the dtype of x.

    Small blocks are multiplied elementwise, and so is their gradient. As batched products of 4 x 4
    matrices, cuBLAS and Triton use 8 bytes of each row of 3 KB that they fetch: 0.58 of 3 TB/s were
    measured (198 of a step's 600 ms, 125M model).

    The kernel's gradient comes from products of 64 channels, of which only the diagonal blocks are
    kept: they use 128 bytes of each row, and have so few FLOPs that reading takes longer. For a
    plain sum over tokens XLA first copies x and the gradient, channels first and in float32, which
    takes about 45 ms a step more.
    """
    num_blocks, size, _ = kernel.shape
    kernel = kernel.astype(x.dtype)
    if size > SMALL_BLOCK:
        blocks = x.reshape(*x.shape[:-1], num_blocks, size)
        return jnp.einsum("btni,nio->btno", blocks, kernel).reshape(x.shape)
    return _multiply_blocks((), x, kernel.astype(_wide(x)))


def _multiply(x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]) -> Float[Array, "B T I"]:
    blocks = x.astype(_wide(x)).reshape(*x.shape[:-1], *kernel.shape[:2])
    products = sum(blocks[..., i, None] * kernel[:, i] for i in range(kernel.shape[1]))
    return products.reshape(x.shape).astype(x.dtype)


def _forward(static, x, kernel):
    return _multiply(x, kernel), (x, kernel)


def _backward(static, residuals, dy):
    x, kernel = residuals
    dx = _multiply_blocks(static, dy, jnp.swapaxes(kernel, 1, 2))
    return dx, _kernel_gradient(x, dy, kernel.shape).astype(kernel.dtype)


def _push(static, residuals, tangents):
    (x, kernel), (dx, d_kernel) = residuals, tangents
    return _multiply_blocks(static, dx, kernel) + _multiply_blocks(static, x, d_kernel)


_multiply_blocks = with_backward(
    lambda static, *arrays: _multiply(*arrays), _forward, _backward, _push
)


def _kernel_gradient(
    x: Float[Array, "B T I"], dy: Float[Array, "B T I"], shape: tuple[int, int, int]
) -> Float[Array, "N i o"]:
    """The sum over all tokens of x_i dy_o in each block, in float32 or better."""
    num_blocks, size, _ = shape
    per_group = math.gcd(num_blocks, GROUP_CHANNELS // size)
    channels = per_group * size
    # XLA cuts the sum over tokens itself. Where time is spread over devices, tokens stay two axes.
    tokens = x.shape[:2] if num_shards("time") > 1 else (-1,)
    x, dy = (array.reshape(*tokens, num_blocks // per_group, channels) for array in (x, dy))
    letters = "bt"[-len(tokens) :]
    products = jnp.einsum(f"{letters}gi,{letters}go->gio", x, dy, preferred_element_type=_wide(x))
    of_groups = products.reshape(-1, per_group, size, per_group, size)
    diagonal = jnp.arange(per_group)
    return of_groups[:, diagonal, :, diagonal].swapaxes(0, 1).reshape(shape)


STRETCH = 32  # tokens whose summands a thread adds up


def products_of_one_input(
    x: Float[Array, "N D"], kernels: Sequence[Float[Array, "D _"]]
) -> list[Float[Array, "N _"]]:
    """x @ kernel for each kernel, in the dtype of x.

    Their gradients are two products, of the outputs' gradients side by side: x's sum over the
    outputs stays in float32 to its end, and x is read once for all kernels. Apart, XLA adds some of
    the outputs' shares in passes of their own, rounded (with q, k, v and o of a 1.42B model 1.4 GB
    and 12 launches a block more).
    """
    return _products(x, *(kernel.astype(x.dtype) for kernel in kernels))


def _plain_products(x, *kernels):
    return [x @ kernel for kernel in kernels]


def _products_tangent(inputs, tangents):
    (x, *kernels), (dx, *d_kernels) = inputs, tangents
    ends = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1]
    together = dx @ jnp.concatenate(kernels, axis=1) + x @ jnp.concatenate(d_kernels, axis=1)
    return _plain_products(x, *kernels), jnp.split(together, ends, axis=-1)


_products = jax.custom_jvp(_plain_products)
_products.defjvp(_products_tangent)


def sum_of_taps(
    inputs: Float[Array, "B W-1+T I"], kernel: Float[Array, "W I"], bias: Float[Array, " I"]
) -> Float[Array, "B T I"]:
    """bias plus every tap of the kernel times the inputs it meets, all in one dtype.

    The gradients of kernel and bias are W+1 sums over tokens. As reductions XLA makes three kernels
    of them, each of which reads the inputs and the gradient of the outputs; as sums over windows of
    STRETCH tokens it makes one (0.18 instead of 0.55 ms of 65,536 tokens and 1,536 channels).
    """
    return _sum_of_taps((), inputs, kernel, bias)


def _taps(static, inputs, kernel, bias):
    time = inputs.shape[1] - kernel.shape[0] + 1
    return bias + sum(inputs[:, tap : tap + time] * weight for tap, weight in enumerate(kernel))


def _taps_forward(static, inputs, kernel, bias):
    return _taps(static, inputs, kernel, bias), (inputs, kernel, bias)


def _taps_backward(static, residuals, dy):
    inputs, kernel, bias = residuals
    width, time = kernel.shape[0], dy.shape[1]
    dy = computed_once(dy)
    around = jnp.pad(dy, ((0, 0), (width - 1, width - 1), (0, 0)))
    d_inputs = sum(
        around[:, width - 1 - tap : width - 1 - tap + inputs.shape[1]] * weight
        for tap, weight in enumerate(kernel)
    )
    wide = dy.astype(_wide(dy))
    summands = [wide * inputs[:, tap : tap + time].astype(wide.dtype) for tap in range(width)]
    *of_taps, of_bias = _over_tokens((), [*summands, wide])
    return d_inputs, jnp.stack(of_taps).astype(kernel.dtype), of_bias.astype(bias.dtype)


def _taps_push(static, residuals, tangents):
    (inputs, kernel, _), (d_inputs, d_kernel, d_bias) = residuals, tangents
    moved = sum_of_taps(d_inputs, kernel, jnp.zeros_like(d_bias))
    return moved + sum_of_taps(inputs, d_kernel, d_bias)


_sum_of_taps = with_backward(_taps, _taps_forward, _taps_backward, _taps_push)


def along_tokens(row: Float[Array, " D"], shape: tuple[int, int]) -> Float[Array, "B T D"]:
    """The row at every token of a batch of shape (B, T). Its gradient, the sum over all tokens, is
    taken where the summands are computed, and not from an array of them in float32.
    """
    return _along_tokens(shape, row)


def _along(shape, row):
    return jnp.broadcast_to(row, (*shape, *row.shape))


def _along_backward(shape, row, dy):
    (total,) = _over_tokens((), [dy.astype(_wide(dy))])
    return (total.astype(dy.dtype),)


_along_tokens = with_backward(
    _along,
    lambda shape, row: (_along(shape, row), ()),
    _along_backward,
    lambda shape, residuals, tangents: _along_tokens(shape, *tangents),
)


def _sums(static, arrays: list[Float[Array, "B T I"]]) -> list[Float[Array, " I"]]:
    """The sum of each over all tokens, read in one pass."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)

    def add(x: tuple[Array, ...], y: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(a + b for a, b in zip(x, y, strict=True))

    window, filled = (1, STRETCH, 1), ((0, 0), (0, -arrays[0].shape[1] % STRETCH), (0, 0))
    sums = jax.lax.reduce_window(tuple(arrays), zeros, add, window, window, filled)
    return [jnp.sum(x, axis=(0, 1)) for x in sums]


# jax has no derivative of a window over several arrays
_over_tokens = with_backward(
    _sums,
    lambda static, arrays: (_sums(static, arrays), [jnp.zeros_like(x) for x in arrays]),
    lambda static, zeros, sums: ([x + row for x, row in zip(zeros, sums, strict=True)],),
    lambda static, zeros, tangents: _over_tokens(static, *tangents),
)


def computed_once(x: Array) -> Array:
    """x. Without a barrier XLA adds up a residual stream again for each norm that reads it: the
    branches of all blocks before, of which the last of 32 blocks reads 64.
    """
    return jax.lax.optimization_barrier(x)


def gate_of_token(
    x: Float[Array, "B 1 D"], kernel: Float[Array, "D H"], bias: Float[Array, " H"]
) -> Float[Array, "B 1 H"]:
    """bias plus x times the kernel, both in the dtype of x, in float32: `gate_preactivations` of
    one gate for one token.

    Not as a product of matrices, for which XLA first copies the float32 kernels of the gates,
    twice, into one in the dtype of x: the entries of all gates are multiplied and added up in one
    kernel, which reads the parameters where they lie. The barrier keeps what x is made of from
    being computed once more.
    """
    entries = jax.lax.optimization_barrier(x).astype(_wide(x))[..., None]
    return bias + jnp.sum(entries * kernel.astype(x.dtype).astype(_wide(x)), axis=-2)


def head_norm(
    h: HeadActivations, scale: Float[Array, " H*V"], eps: float, *, center: bool
) -> Float[Array, "B T H*V"]:
    """`normalize` of each head times the scale; the dtype of h.

    Forward and backward take two passes each, sums first and then what is elementwise, with a
    barrier between them. Without it XLA makes one kernel of both, whose tiles of one head and
    several tokens take 230 registers a thread (`analysis.compiled.tiles`): 0.8 to 1.06 of 3 TB/s
    were measured.
    """
    return _head_norm((eps, center), h, scale)


def _mean_of_head(x: HeadActivations, wanted: bool = True) -> Float[Array, "B T H 1"]:
    return jnp.mean(x, axis=-1, keepdims=True) if wanted else jnp.zeros((*x.shape[:-1], 1), x.dtype)


def _head_norm_forward(static, h, scale):
    eps, center = static
    x = h.astype(_wide(h))
    # Mean and variance in one pass over h, from distances to a head's first channel: the mean is at
    # most sqrt(V) standard deviations from it, so that the difference of squares keeps its digits.
    first = x[..., :1] if center else jnp.zeros_like(x[..., :1])
    distance, square = _mean_of_head(x - first), _mean_of_head(jnp.square(x - first))
    mean = first + distance if center else first
    variance = jnp.maximum(square - jnp.square(distance), 0) if center else square
    mean, rate = jax.lax.optimization_barrier((mean, jax.lax.rsqrt(variance + eps)))
    y = (x - mean) * rate * scale.reshape(h.shape[2:])
    return y.astype(h.dtype).reshape(*h.shape[:2], -1), (h, scale, mean, rate)


def _head_norm_backward(static, residuals, dy):
    h, scale, mean, rate = residuals
    normed = (h.astype(mean.dtype) - mean) * rate
    dy = dy.reshape(h.shape).astype(mean.dtype)
    along = dy * scale.reshape(h.shape[2:])
    sums = _mean_of_head(along, static[1]), _mean_of_head(along * normed)
    level, slope = jax.lax.optimization_barrier(sums)
    dh = rate * (along - level - normed * slope)
    return dh.astype(h.dtype), jnp.sum(dy * normed, axis=(0, 1)).reshape(-1).astype(scale.dtype)


def _head_norm_push(static, residuals, tangents):
    h, scale, mean, rate = residuals
    dh, d_scale = tangents
    normed, dh = (h.astype(mean.dtype) - mean) * rate, dh.astype(mean.dtype)
    moved = rate * (dh - _mean_of_head(dh, static[1]) - normed * _mean_of_head(dh * normed))
    dy = moved * scale.reshape(h.shape[2:]) + normed * d_scale.reshape(h.shape[2:])
    return dy.astype(h.dtype).reshape(*h.shape[:2], -1)


_head_norm = with_backward(
    lambda static, *arrays: _head_norm_forward(static, *arrays)[0],
    _head_norm_forward,
    _head_norm_backward,
    _head_norm_push,
    name=("head_norm", "cell", "cell"),  # mean and rate are kept with the h that they are of
)


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
