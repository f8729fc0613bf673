"""`mlstm_front` on TPUs (Mosaic): one kernel forward, one backward."""

import jax.numpy as jnp

from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm_front import pallas_tpu_kernels
from pallas_kernels.mlstm_front.call import Call, Front
from pallas_kernels.mlstm_front.pallas_tpu_kernels import Settings
from pallas_kernels.mlstm_front.rows import Kernels, check, with_kernels
from pallas_kernels.tpu_sizes import LANES
from pallas_kernels.tpu_tiles import tokens_of, with_first_axis_last

ARRAYS = 7  # of a backward pass


def mlstm_front_pallas_tpu(call: Call) -> Front:
    """The backend "pallas_tpu": bfloat16, and float32 (precision HIGHEST).

    Raises NotImplementedError for other types, channels that are no multiple of 128 or of which
    VMEM holds fewer than 128 tokens, and blocks that do not divide 128.
    """
    mode, channels, dtype = interpret_mode("tpu"), call.u.shape[-1], call.u.dtype
    size = check(call, LANES, jnp.bfloat16, jnp.float32)
    if channels % LANES:
        raise NotImplementedError(f"channels must be a multiple of {LANES}; they are {channels}")
    # twice, as whatever a program has is: three maps, and their gradients' float32 sums
    beside = 2 * 3 * channels * LANES * (jnp.dtype(dtype).itemsize + 4)
    settings = Settings(size, tokens_of(ARRAYS, channels, dtype, beside), mode)
    kernels = Kernels(pallas_tpu_kernels, settings, LANES, with_first_axis_last)
    return _front(kernels, call)


_front = with_kernels("pallas_tpu")
