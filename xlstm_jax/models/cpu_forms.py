"""Plain expressions, written so that XLA's CPU backend computes them and their gradients fast.

Each function's first line says what it computes; the rest of it changes the time and the memory of
a step on a CPU and no result. What other devices compile stays as good as before (tests hold that
for the TPU). Times are of 2 CPU cores.

Every function can be differentiated in every mode and as often as wished. Where the gradient needs
a form of its own, the function states its tangent (`jax.custom_jvp`) as a linear map whose
transpose is that form, so that reverse mode gets the fast one and forward mode a right one.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from xlstm_jax.models import gpu_forms
from xlstm_jax.parallel import constrain, num_shards, platform
from xlstm_jax.typing import Array, Bool, Float, Int

Tangent = Callable[[tuple, tuple], Array]


def _with_tangent(tangent: Tangent) -> Callable[[Callable], Callable]:
    """Gives a function the derivative tangent(inputs, their tangents). For the backward pass only
    the inputs are kept; all else is computed again.

    Without the barriers that `prevent_cse` would add: they keep the TPU's compiler from joining the
    function with its neighbours (8 to 16 % more bytes in a step of the 125M model).
    """

    def wrap(function: Callable) -> Callable:
        with_jvp = jax.custom_jvp(function)
        with_jvp.defjvp(lambda inputs, moves: (with_jvp(*inputs), tangent(inputs, moves)))
        return functools.wraps(function)(jax.checkpoint(with_jvp, prevent_cse=False))

    return wrap


def project(x: Float[Array, "... D"], kernel: Float[Array, "D F"]) -> Float[Array, "... F"]:
    """x @ kernel in the dtype of x.

    The leading axes are flattened first: XLA's CPU backend then sees one plain matrix product, also
    for the kernel's gradient (one training step's projections at D 256, B 8, T 256: 105 ms instead
    of 145 ms). Not where the time is spread over devices: rows and time can't be one axis then
    without all tokens on every device.
    """
    kernel = checkpoint_name(kernel.astype(x.dtype), "operands")
    if num_shards("time") > 1:
        return x @ kernel
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def project_in_parts(
    x: Float[Array, "... D"], kernel: Float[Array, "D F"], parts: int
) -> list[Float[Array, "... _"]]:
    """x @ kernel in the dtype of x, its last axis cut into equal parts.

    Cutting an array copies it, so the smaller of the two is cut: the kernel, or its product with x.
    A step of a few tokens does not copy its weights then (162M parameters, one token: 10.6 ms
    instead of 15.7).
    """
    if x.size < kernel.shape[0] ** 2:
        return jnp.split(project(x, kernel), parts, axis=-1)
    return [project(x, part) for part in jnp.split(kernel, parts, axis=-1)]


def gate_preactivations(
    inputs: list[Float[Array, "B T _"]],
    kernels: list[Float[Array, "_ G"]],
    bias: Float[Array, " G"],
) -> Float[Array, "B T G"]:
    """bias plus each input times its kernel, in float32.

    The barrier holds the kernels transposed: with their few columns XLA's CPU backend takes 3 ms
    for a kernel's gradient from 2,048 tokens of 512 channels, 0.2 ms for its transpose.
    """
    gates = bias
    for x, kernel in zip(inputs, kernels, strict=True):
        transposed = jax.lax.optimization_barrier(kernel.T).astype(x.dtype)
        gates = gates + jnp.einsum(
            "btd,gd->btg",
            x,
            transposed,
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
    return constrain(gates, "batch", "time", None)


def _silu_tangent(inputs, tangents):
    (x,), (dx,) = inputs, tangents
    # Written with tanh, because XLA would recognise the sigmoid of the forward pass and keep it.
    high = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sigmoid = (1 + jnp.tanh(high / 2)) / 2
    return (dx * sigmoid * (1 + high * (1 - sigmoid))).astype(x.dtype)


@_with_tangent(_silu_tangent)
def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(x).

    The backward pass has x alone and computes the sigmoid again. Kept, it is an array as large as x
    in every block (4 blocks at D 256, B 8, T 1024: 1,543 instead of 1,408 MB of temporaries, and
    0.82 instead of 0.75 s a step, because their pages are new in every step).
    """
    return jax.nn.silu(x)


def _spread(row: Float[Array, " D"], shape: tuple[int, int]) -> Float[Array, "B T D"]:
    """The row at every token of a batch of shape (B, T), as a product with ones.

    What counts is its transpose, by which the row's gradient is computed: the sum over all tokens,
    in float32 or better, as a product with ones (0.3 ms for 2,048 tokens of 512 channels; a plain
    sum takes 1.2 ms).

    Where a sequence lies on one device, it is cut into eight stretches, and these are added to one
    another before the product, in the same pass that computes the summands: the product then has an
    eighth of them to read from memory (a convolution, SiLU and gradients, 8,192 tokens: 5.5 ms
    instead of 10). Rows and time are one axis in it: with two, XLA first copies the summands into
    another order. Where the time is spread over devices they stay two axes, as in `project`.
    """
    if platform() == "gpu" and num_shards("time") == 1:
        return gpu_forms.along_tokens(row, shape)
    batch, time = shape
    dtype = jnp.promote_types(row.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if num_shards("time") > 1:
        return product("bt,d->btd", jnp.ones(shape, dtype), row.astype(dtype)).astype(row.dtype)
    eighths = 8 if time % 8 == 0 else 1
    ones = jnp.ones((batch * (time // eighths), 1), dtype)
    rows = product("no,od->nd", ones, row[None].astype(dtype))
    rows = jnp.broadcast_to(
        rows.reshape(batch, 1, -1, *row.shape), (batch, eighths, time // eighths, *row.shape)
    )
    return rows.reshape(*shape, *row.shape).astype(row.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def along_tokens(row: Float[Array, " D"], shape: tuple[int, int]) -> Float[Array, "B T D"]:
    """The row at every token of a batch of shape (B, T); its gradient as in `_spread`."""
    return jnp.broadcast_to(row, (*shape, *row.shape))


@along_tokens.defjvp
def _along_tokens_jvp(shape, primals, tangents):
    return along_tokens(*primals, shape), _spread(*tangents, shape)


def scale_channels(x: Float[Array, "B T D"], scale: Float[Array, " D"]) -> Float[Array, "B T D"]:
    """x * scale, both of one dtype; the gradient of scale as in `along_tokens`."""
    return x * along_tokens(scale, x.shape[:2])


def _sum_of_taps_tangent(inputs, tangents):
    """Each tap's products are computed for all inputs, also for those that meet no token of the
    sequence at this tap. They are moved to the token that the tap adds them to and added up on a
    time axis that is longer on both sides; what lies outside the sequence is cut off at the end.
    """
    x, kernel, _, ids = inputs
    dx, d_kernel, d_bias, _ = tangents
    reach, tokens = kernel.shape[0] - 1, x.shape[:2]
    around = _pad_time(_spread(d_bias, tokens), 0, reach)
    for tap, (weight, d_weight) in enumerate(zip(kernel, d_kernel, strict=True)):
        products = dx * weight + x * _spread(d_weight, tokens)
        if ids is not None:
            same = _pad_time(_same_document(ids, tap, reach)[..., None], tap, reach - tap)
            products = jnp.where(same, products, 0)
        around = around + _pad_time(products, reach - tap, tap)
    return around[:, reach : tokens[1]]


@_with_tangent(_sum_of_taps_tangent)
def sum_of_taps(
    inputs: Float[Array, "B W-1+T I"],
    kernel: Float[Array, "W I"],
    bias: Float[Array, " I"],
    ids: Int[Array, "B W-1+T"] | None,
) -> Float[Array, "B T I"]:
    """bias plus every tap of the kernel times the inputs it meets, those of other documents (`ids`)
    left out.

    In the backward pass the gradient of the outputs is computed once, and every tap reads its own
    part of it with a margin of zeros around. Plain autodiff makes a loop for every tap, each of
    which computes that gradient again from its sources (64 ms instead of 10 ms of a block's 100 ms
    at D 256, B 8, T 256).
    """
    time = inputs.shape[1] - kernel.shape[0] + 1
    y = bias
    for tap, weight in enumerate(kernel):
        x = inputs[:, tap : tap + time]
        if ids is not None:
            x = jnp.where(_same_document(ids, tap, kernel.shape[0] - 1)[..., None], x, 0)
        y = y + x * weight
    return y


def _pad_time(x: Array, before: int, after: int) -> Array:
    """x between zeros. As a concatenation, whose transpose is a slice: that of `jnp.pad` is joined
    with other pads and so computes what it cuts once more.
    """
    margins = [jnp.zeros((x.shape[0], size, x.shape[2]), x.dtype) for size in (before, after)]
    return jnp.concatenate([margins[0], x, margins[1]], axis=1)


def _same_document(ids: Int[Array, "B W-1+T"], tap: int, reach: int) -> Bool[Array, "B T"]:
    """Whether the input that a token meets at a tap belongs to the token's own document."""
    return ids[:, tap : ids.shape[1] - reach + tap] == ids[:, reach:]


FEW_CHANNELS = 1024  # at most so many: no product of matrices
GROUP_CHANNELS = 32  # channels of one product in the kernel's gradient


def block_diagonal_product(
    x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]
) -> Float[Array, "B T I"]:
    """Each block of i neighbouring channels times its own [i o] matrix, in the dtype of x.

    Up to 1,024 channels that lie on one device the product is i elementwise multiplications and the
    kernel's gradient products of 32 channels, of which only the diagonal blocks are kept: many tiny
    products cost more in rearranging their operands, a dense one in multiplying (the gradient from
    8,192 tokens of 512 channels, block size 4: 5 ms; in products of 128 channels 6 ms, of all 512
    11 ms).
    """
    num_blocks, size, _ = kernel.shape
    kernel = kernel.astype(x.dtype)
    if num_blocks * size > FEW_CHANNELS or num_shards("time", "inner") > 1:
        return jnp.einsum(
            "btni,nio->btno", x.reshape(*x.shape[:-1], num_blocks, size), kernel
        ).reshape(x.shape)
    return _multiply_blocks(x, kernel)


def _multiply_blocks_tangent(inputs, tangents):
    (x, kernel), (dx, d_kernel) = inputs, tangents
    num_blocks, size, _ = kernel.shape

    # Transposed, these are the elementwise multiplications again, with the blocks transposed.
    blocks = dx.reshape(*x.shape[:-1], num_blocks, size)
    transposed = jnp.swapaxes(kernel, 1, 2)
    columns = [jnp.sum(blocks * transposed[:, o], axis=-1) for o in range(size)]
    through_x = jnp.stack(columns, axis=-1).reshape(x.shape)

    # Groups of blocks as one block-diagonal matrix each. Transposed: dense products, of which the
    # diagonal blocks are read. The groups come first in x and y, so that XLA need not turn the
    # gradients round, time last (8 ms for 2,048 tokens of 512 channels).
    per_group = math.gcd(num_blocks, max(1, GROUP_CHANNELS // size))
    groups, channels = num_blocks // per_group, per_group * size
    blocks = d_kernel.reshape(groups, per_group, size, 1, size)
    diagonal = jnp.eye(per_group, dtype=blocks.dtype)[:, None, :, None]
    matrices = (blocks * diagonal).reshape(groups, channels, channels)
    x_groups = jnp.swapaxes(x.reshape(-1, groups, channels), 0, 1)
    through_kernel = jnp.swapaxes(jnp.einsum("gti,gio->gto", x_groups, matrices), 0, 1)
    return through_x + through_kernel.reshape(x.shape)


@_with_tangent(_multiply_blocks_tangent)
def _multiply_blocks(
    x: Float[Array, "B T I"], kernel: Float[Array, "N i o"]
) -> Float[Array, "B T I"]:
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return sum(blocks[..., i, None] * kernel[:, i] for i in range(kernel.shape[1])).reshape(x.shape)
