"""Attention by jax's own splash attention kernel for TPUs: grouped heads, documents, a cache."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from pallas_kernels.attention.call import Call
from pallas_kernels.interpret import interpret_mode

LANES = 128  # the kernel's blocks are multiples of it
BLOCK_SIZE = 512


def attention_pallas_tpu(call: Call) -> Float[Array, "B T H V"]:
    """Splash attention, the times filled up to multiples of its blocks, mapped over the rows.

    Padding attends to padding there, so that no query is without a key; nobody reads it.
    """
    mode = interpret_mode("tpu")
    low = jnp.result_type(call.q, call.k, call.v)
    if low != jnp.bfloat16:
        raise NotImplementedError(
            f"the kernel multiplies in bfloat16, which is less than the inputs' {low}"
        )
    if jax.config.jax_enable_x64:
        raise NotImplementedError("the library's kernel can't be traced with jax_enable_x64")
    time, heads = call.q.shape[1:3]
    if time == 1:
        raise NotImplementedError("one token is less than a block of the kernel")
    keys = call.k.shape[1]
    q_size, k_size = _block(time), _block(keys)

    q = (call.q * jnp.asarray(call.scale, call.dtype)).astype(low)
    q, k, v = _fill(q, q_size), _fill(call.k, k_size), _fill(call.v, k_size)
    q, k, v = (jnp.swapaxes(x.astype(low), 1, 2) for x in (q, k, v))
    ids = None
    if call.q_documents is not None:
        ids = splash.SegmentIds(
            _fill(call.q_documents, q_size, -1), _fill(call.k_documents, k_size, -1)
        )
    mask = masks.CausalMask((q.shape[2], k.shape[2]), offset=keys - time)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=q_size,
            block_kv=k_size,
            block_q_dkv=q_size,
            block_kv_dkv=k_size,
            block_q_dq=q_size,
            block_kv_dq=k_size,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=mode,
    )
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, ids), 1, 2)[:, :time]


def _block(length: int) -> int:
    """The block, a multiple of LANES up to BLOCK_SIZE, that leaves little to fill up."""
    blocks = -(-length // BLOCK_SIZE)
    return -(-length // (blocks * LANES)) * LANES


def _fill(x: Array, size: int, neutral: int = 0) -> Array:
    missing = -x.shape[1] % size
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=neutral)
