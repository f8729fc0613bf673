"""The loss: cross-entropy of the next token, with its gradients in the same pass.

The logits are many times the rest of a step's activations, so they are made for some tokens at a
time. While they are there, the gradients of these tokens' loss are taken from them: of y whole, of
the kernel as a sum over the parts. Nothing of the size of the logits is kept and no product is
computed twice. What is left for the backward pass is to multiply by the cotangent of the sum.

Each device cuts its own tokens into parts and adds up its own gradient of the kernel; the devices'
gradients are added once, at the end.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.derivatives import with_backward
from xlstm_jax.models.layers import soft_cap
from xlstm_jax.parallel import constrain, device_memory, gathered, num_shards, platform
from xlstm_jax.typing import Activations, Logits

Mask = Float[Array, "B T"] | Bool[Array, "B T"]
VocabularyKernel = Float[Array, "D E"]

LOGITS_BYTES = 2**28  # float32 logits that one device may hold at once; GPUs see below
# A GPU may hold as many as fill this share of its memory (2.2 of 80 GB; in bfloat16 the logits are
# half of that and their gradient is the other half): its products are the faster the larger they
# are, and each part costs a pass over the gradient of the kernel.
SHARE_OF_A_GPU = 1 / 36
# On a GPU the tokens of a part and the columns are multiples of it: cuBLAS wants rows of 16 bytes
# and whole tiles.
GPU_MULTIPLE = 64


class _Plan(NamedTuple):
    """dtype: of the products; multiple: of the tokens of a part and of the kernel's columns."""

    dtype: jnp.dtype
    cap: float | None
    parts: int
    multiple: int


def cross_entropy_sum(logits: Logits, targets: Int[Array, "B T"], mask: Mask) -> Float[Array, ""]:
    """The summed negative log-likelihood of the targets where the mask is set, nats; softmax and
    sum in float32.
    """
    logits = logits.astype(_wide(logits.dtype))
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - target_logits
    # where: what is masked can't be NaN times 0
    return jnp.sum(jnp.where(mask.astype(bool), losses, 0.0))


def projected_cross_entropy_sum(
    y: Activations,
    kernel: VocabularyKernel,
    targets: Int[Array, "B T"],
    mask: Mask,
    *,
    cap: float | None = None,
    parts: int = 1,
    multiple: int = 1,
) -> Float[Array, ""]:
    """`cross_entropy_sum(soft_cap(y @ kernel, cap), targets, mask)`, the product in the dtype of y,
    its gradients summed up in float32 or better; never more logits at once than those of one of
    `parts` parts of the tokens.
    """
    plan = _Plan(y.dtype, cap, parts, multiple)
    y, kernel = (x.astype(_wide(x.dtype)) for x in (y, kernel))  # so their cotangents are wide too
    return _in_parts(plan, y, kernel, targets, mask.astype(bool))


def token_parts(logits: int, devices: int) -> tuple[int, int]:
    """The number of parts that the tokens are taken in when a step has that many logits, evenly
    spread over the devices, and what the tokens of a part and the columns are multiples of.
    """
    memory = device_memory() if platform() == "gpu" else None
    if memory is None:
        return 2 ** max(0, math.ceil(math.log2(4 * logits / devices / LOGITS_BYTES))), 1
    return max(1, math.ceil(4 * logits / devices / (memory * SHARE_OF_A_GPU))), GPU_MULTIPLE


def _value(plan: _Plan, y, kernel, targets, mask) -> Float[Array, ""]:
    filled, parts = _filled_kernel(plan, kernel), _tokens(plan, y, targets, mask)

    def add_part(losses, tokens):
        return losses + _losses(plan, filled, kernel.shape[1], *tokens)[0], None

    zeros = jnp.zeros(parts[0].shape[1], _wide(plan.dtype))
    return jnp.sum(lax.scan(add_part, zeros, parts)[0])


def _forward(plan: _Plan, y, kernel, targets, mask):
    dtype, vocabulary = _wide(plan.dtype), kernel.shape[1]
    filled, parts = _filled_kernel(plan, kernel), _tokens(plan, y, targets, mask)

    def add_part(carry, tokens):
        losses, dkernel = carry
        y, targets, mask = tokens
        of_part, logits, largest, total = _losses(plan, filled, vocabulary, *tokens)
        if platform() != "cpu":
            # On accelerators an exponential costs less than to write it and to read it again, in
            # float32: the barrier keeps XLA from doing so for both of its uses.
            logits, largest, total = lax.optimization_barrier((logits, largest, total))
        probable = jnp.where(mask, 1 / total, 0.0)[..., None]
        capped = soft_cap(logits.astype(dtype), plan.cap)
        is_target = jnp.arange(vocabulary) == targets[..., None]
        dlogits = jnp.exp(capped - largest[..., None]) * probable - is_target
        if plan.cap is not None:
            dlogits *= 1 - jnp.square(capped / plan.cap)
        dlogits = _filled(dlogits.astype(plan.dtype), filled.shape[1])
        dy = _product("sne,de->snd", dlogits, filled, dtype)
        dkernel += _product("snd,sne->sde", y, dlogits, dtype)
        return (losses + of_part, constrain(dkernel, "tokens", None, "vocab")), dy

    shards = parts[0].shape[1]
    zeros = jnp.zeros(shards, dtype), jnp.zeros((shards, *filled.shape), dtype)
    (losses, dkernel), dy = lax.scan(add_part, zeros, parts)
    dkernel = constrain(jnp.sum(dkernel, axis=0)[:, :vocabulary], "embed", "vocab")
    if shards > 1:
        # The devices' gradients are added before anything goes on from dy. Otherwise XLA puts it
        # off to the optimizer, and each device holds its own, of the whole kernel, throughout the
        # backward pass.
        dkernel, dy = lax.optimization_barrier((dkernel, dy))
    return jnp.sum(losses), (_joined(dy, y.shape), dkernel)


def _backward(plan: _Plan, gradients, cotangent):
    dy, dkernel = gradients
    return cotangent * dy, cotangent * dkernel, None, None


def _push(plan: _Plan, gradients, tangents):
    return sum(jnp.vdot(x, dx) for x, dx in zip(gradients, tangents[:2], strict=True))


_in_parts = with_backward(_value, _forward, _backward, _push)


def _losses(
    plan: _Plan,
    filled: VocabularyKernel,
    vocabulary: int,
    y: Float[Array, "S n D"],
    targets: Int[Array, "S n"],
    mask: Bool[Array, "S n"],
) -> tuple[Float[Array, " S"], Float[Array, "S n E"], Float[Array, "S n"], Float[Array, "S n"]]:
    """The summed losses of some tokens and their logits before the cap; of those after it the
    largest, and the sum of their exponentials over its own.
    """
    logits, dtype = _product("snd,de->sne", y, filled, plan.dtype), _wide(plan.dtype)
    logits = constrain(logits, "tokens", None, "vocab")[..., :vocabulary]
    largest = soft_cap(jnp.max(logits, axis=-1).astype(dtype), plan.cap)  # the cap is monotonic
    largest = lax.stop_gradient(largest)
    capped = soft_cap(logits.astype(dtype), plan.cap)
    total = jnp.sum(jnp.exp(capped - largest[..., None]), axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(dtype)
    losses = largest + jnp.log(total) - soft_cap(target, plan.cap)
    return jnp.sum(jnp.where(mask, losses, 0.0), axis=-1), logits, largest, total


def _product(letters: str, a: Array, b: Array, dtype: jnp.dtype) -> Array:
    return jnp.einsum(letters, a, b, preferred_element_type=dtype)


def _filled_kernel(plan: _Plan, kernel: VocabularyKernel) -> VocabularyKernel:
    """The kernel as the products take it, with columns of zeros at its end."""
    multiple = plan.multiple * num_shards("vocab")
    columns = kernel.shape[1] if plan.multiple == 1 else -(-kernel.shape[1] // multiple) * multiple
    return gathered(_filled(kernel.astype(plan.dtype), columns), "embed", "vocab")


def _filled(x: Array, columns: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns - x.shape[-1])])


def _tokens(plan: _Plan, y, targets, mask) -> tuple[Array, ...]:
    """What the scan takes. Masked tokens have no target, and what y holds there does not count."""
    y = jnp.where(mask[..., None], y, 0.0).astype(plan.dtype)
    return _cut(plan, y, jnp.where(mask, targets, -1), mask)


def _cut(plan: _Plan, *arrays: Array) -> tuple[Array, ...]:
    """[B T ...] -> [parts S n ...]: S groups of tokens that lie on a device each, every one of them
    in parts of n. The last part is filled up with zeros, which the mask leaves out.
    """
    rows, times = _spread(arrays[0].shape)
    tokens = math.prod(arrays[0].shape[:2]) // (rows * times)
    n = -(-tokens // (plan.parts * plan.multiple)) * plan.multiple
    parts = -(-tokens // n)

    def cut(x: Array) -> Array:
        rest = x.shape[2:]
        x = x.reshape(rows, x.shape[0] // rows, times, x.shape[1] // times, *rest)
        x = x.swapaxes(1, 2).reshape(rows * times, tokens, *rest)
        x = jnp.pad(x, [(0, 0), (0, parts * n - tokens)] + [(0, 0)] * len(rest))
        x = constrain(x, "tokens", None, *(None for _ in rest))
        return x.reshape(rows * times, parts, n, *rest).swapaxes(0, 1)

    return tuple(cut(x) for x in arrays)


def _joined(x: Float[Array, "parts S n D"], shape: tuple[int, int, int]) -> Activations:
    """What `_cut` cut."""
    rows, times = _spread(shape)
    batch, time, dim = shape
    x = x.swapaxes(0, 1).reshape(rows * times, -1, dim)[:, : batch * time // (rows * times)]
    x = x.reshape(rows, times, batch // rows, time // times, dim).swapaxes(1, 2)
    return constrain(x.reshape(shape), "batch", "time", "channels")


def _spread(shape: tuple[int, ...]) -> tuple[int, int]:
    """Over how many devices rows and time are spread; 1 where they can't be dealt out evenly."""
    shards = num_shards("batch"), num_shards("time")
    return tuple(
        count if size % count == 0 else 1 for count, size in zip(shards, shape[:2], strict=True)
    )


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
