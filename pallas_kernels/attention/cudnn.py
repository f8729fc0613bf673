"""Attention by cuDNN's fused kernels, through jax.nn: bfloat16 or float16 on NVIDIA GPUs, one
document per row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.call import Call
from pallas_kernels.dispatch import device_family, target_device


def attention_cudnn(call: Call) -> Float[Array, "B T H V"]:
    """jax.nn.dot_product_attention(implementation="cudnn"), where it serves the call."""
    family = device_family(*target_device())
    largest = 256 if family == "hopper" else 128
    low = jnp.result_type(call.q, call.k, call.v)
    key_dim, value_dim = call.q.shape[-1], call.v.shape[-1]
    if family not in ("gpu", "hopper"):
        raise NotImplementedError("cuDNN runs on NVIDIA GPUs only")
    if low not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"cuDNN's attention takes bfloat16 and float16, not {low}")
    if call.q_documents is not None:
        raise NotImplementedError(
            "cuDNN's attention is used without segment_ids and without a cache"
        )
    if key_dim != value_dim or key_dim % 8 or key_dim > largest:
        raise NotImplementedError(
            f"cuDNN's attention takes K = V, a multiple of 8 up to {largest}, not K {key_dim}, "
            f"V {value_dim}"
        )
    q, k, v = (x.astype(low) for x in call[:3])
    try:
        return jax.nn.dot_product_attention(
            q, k, v, scale=call.scale, is_causal=True, implementation="cudnn"
        )
    except RuntimeError as error:
        # A program for an absent GPU, compiled where the library is not: jax asks it for its
        # version and whether it serves the shape before it writes the call down.
        if "cuDNN is not detected" not in str(error):
            raise
        raise NotImplementedError(
            "cuDNN is not installed where this program is compiled"
        ) from error
