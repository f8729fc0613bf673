"""The definition of `mlstm_back`, in plain operations; differentiable in every mode. All is
computed in float32 or better and rounded once, to the type of h.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.typing import state_dtype

ACTIVATIONS = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


def mlstm_back_reference(call: Call, options: Options) -> Inner:
    """y = (norm(h) * scale + skip * c) * activation(gate)."""
    high = state_dtype(*(x for x in call if x is not None))
    h, gate = call.h.astype(high), call.gate.astype(high)
    if options.center:
        h = h - jnp.mean(h, axis=-1, keepdims=True)
    rate = lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + options.eps)
    y = (h * rate).reshape(gate.shape) * call.scale
    if call.c is not None:
        y = y + call.skip * call.c.astype(high)
    return (y * ACTIVATIONS[options.activation](gate)).astype(call.h.dtype)
