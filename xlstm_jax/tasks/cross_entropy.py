"""The loss: cross-entropy of the next token, with the vocabulary in parts where all logits at once
would be too many.

The parts are cut from the vocabulary and not from the tokens: each part's kernel gradient is then
complete after its own step, so that data-parallel devices reduce every column once, and the
gathered kernel is one part at a time too. The price is that the backward pass computes the logits
again (2·D·E of the 6·D·E FLOPs per token that projection and gradients take).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.derivatives import with_backward
from xlstm_jax.parallel import device_memory, platform
from xlstm_jax.typing import Activations, Logits

Mask = Float[Array, "B T"] | Bool[Array, "B T"]
VocabularyKernel = Float[Array, "D E"]
# the logits of some of the vocabulary from the columns of the kernel
Head = Callable[[Activations, VocabularyKernel], Logits]

LOGITS_BYTES = 2**28  # float32 logits that one device may hold at once; GPUs see below
# A GPU may hold as many as fill this share of its memory (2.2 of 80 GB; in bfloat16 the logits are
# half of that and their gradient is the other half): its products are the faster the larger they
# are, and each part costs a pass over the gradient of y.
SHARE_OF_A_GPU = 1 / 36
GPU_COLUMNS = 64  # a part has a multiple of it: cuBLAS wants rows of 16 bytes and whole tiles


def cross_entropy_sum(logits: Logits, targets: Int[Array, "B T"], mask: Mask) -> Float[Array, ""]:
    """The summed negative log-likelihood of the targets where the mask is set, nats; softmax and
    sum in float32.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - target_logits
    # where: what is masked can't be NaN times 0
    return jnp.sum(jnp.where(mask.astype(bool), losses, 0.0))


def projected_cross_entropy_sum(
    head: Head,
    y: Activations,
    kernel: VocabularyKernel,
    targets: Int[Array, "B T"],
    mask: Mask,
    *,
    parts: int = 1,
    multiple: int = 1,
) -> Float[Array, ""]:
    """`cross_entropy_sum(head(y, kernel), targets, mask)`; with `parts` > 1 never more than one
    part of the logits is there, whose columns are filled up to a multiple of `multiple`.
    """
    if parts == 1:
        return cross_entropy_sum(head(y, kernel), targets, mask)
    return _in_parts((head, parts, multiple), y, kernel, targets, mask.astype(bool))


def vocabulary_parts(logits: int, devices: int) -> tuple[int, int]:
    """The number of parts that the vocabulary is taken in when a step has that many logits, evenly
    spread over the devices, and what the columns of a part are a multiple of.
    """
    memory = device_memory() if platform() == "gpu" else None
    if memory is None:
        return 2 ** max(0, math.ceil(math.log2(4 * logits / devices / LOGITS_BYTES))), 1
    return max(1, math.ceil(4 * logits / devices / (memory * SHARE_OF_A_GPU))), GPU_COLUMNS


def _value(static: tuple[Head, int, int], *arrays: Array) -> Float[Array, ""]:
    return _forward(static, *arrays)[0]


def _forward(static, y, kernel, targets, mask):
    head, parts, multiple = static

    def add_part(carry, inputs):
        largest, total, target_logits = carry
        logits, is_target = _part_logits(y, inputs, targets, head, parts, kernel.shape[1])
        higher = jnp.maximum(largest, jnp.max(logits, axis=-1))
        total = total * jnp.exp(largest - higher) + jnp.sum(
            jnp.exp(logits - higher[..., None]), axis=-1
        )
        return (
            higher,
            total,
            target_logits + jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1),
        ), None

    dtype = jnp.promote_types(y.dtype, jnp.float32)
    first = (
        jnp.full(targets.shape, -jnp.inf, dtype),
        jnp.zeros(targets.shape, dtype),
        jnp.zeros(targets.shape, dtype),
    )
    largest, total, target_logits = lax.scan(
        add_part, first, (jnp.arange(parts), _kernel_parts(kernel, parts, multiple))
    )[0]
    log_total = largest + jnp.log(total)
    return jnp.sum(jnp.where(mask, log_total - target_logits, 0.0)), (
        y,
        kernel,
        targets,
        mask,
        log_total,
    )


def _backward(static, residuals, cotangent):
    head, parts, multiple = static
    y, kernel, targets, mask, log_total = residuals

    def add_part(dy, inputs):
        part, part_kernel = inputs

        def logits_of_part(y, part_kernel):
            return _part_logits(y, (part, part_kernel), targets, head, parts, kernel.shape[1])

        logits, pull_back, is_target = jax.vjp(logits_of_part, y, part_kernel, has_aux=True)
        dlogits = jnp.where(
            mask[..., None], cotangent * (jnp.exp(logits - log_total[..., None]) - is_target), 0.0
        )
        dy_part, dkernel_part = pull_back(dlogits)
        return dy + dy_part.astype(dy.dtype), dkernel_part

    zeros = jnp.zeros(y.shape, jnp.promote_types(y.dtype, jnp.float32))
    dy, dkernel = lax.scan(
        add_part, zeros, (jnp.arange(parts), _kernel_parts(kernel, parts, multiple))
    )
    dkernel = jnp.moveaxis(dkernel, 0, 2).reshape(kernel.shape[0], -1)[:, : kernel.shape[1]]
    return dy.astype(y.dtype), dkernel, None, None


def _push(static, residuals, tangents):
    """The loss's tangent: that of every logit times softmax minus target."""
    head, parts, multiple = static
    y, kernel, targets, mask, log_total = residuals
    dy, dkernel = tangents[:2]

    def add_part(total, inputs):
        part, part_kernel, part_dkernel = inputs

        def logits_of_part(y, part_kernel):
            return _part_logits(y, (part, part_kernel), targets, head, parts, kernel.shape[1])

        logits, dlogits, is_target = jax.jvp(
            logits_of_part, (y, part_kernel), (dy, part_dkernel), has_aux=True
        )
        moved = jnp.sum((jnp.exp(logits - log_total[..., None]) - is_target) * dlogits, axis=-1)
        return total + jnp.sum(jnp.where(mask, moved, 0.0)), None

    slices = (
        jnp.arange(parts),
        _kernel_parts(kernel, parts, multiple),
        _kernel_parts(dkernel, parts, multiple),
    )
    return lax.scan(add_part, jnp.zeros((), log_total.dtype), slices)[0]


_in_parts = with_backward(_value, _forward, _backward, _push)


def _kernel_parts(kernel: VocabularyKernel, parts: int, multiple: int) -> Float[Array, "N D e"]:
    """Part n has the columns n, n + parts, ...: each is spread over the devices as the whole is.
    The last columns are filled up with zeros.
    """
    dim, vocabulary = kernel.shape
    kernel = jnp.pad(kernel, ((0, 0), (0, -vocabulary % (parts * multiple))))
    return jnp.moveaxis(kernel.reshape(dim, -1, parts), 2, 0)


def _part_logits(y, inputs, targets, head: Head, parts: int, vocabulary: int):
    """The logits of one part, -inf where the vocabulary was filled up, and which of them are
    targets.
    """
    part, kernel = inputs
    logits = head(y, kernel)
    entries = jnp.arange(kernel.shape[1]) * parts + part
    if vocabulary < parts * kernel.shape[1]:
        logits = jnp.where(entries < vocabulary, logits, -jnp.inf)
    return logits, entries == targets[..., None]
