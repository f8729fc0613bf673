"""`mlstm_back` on TPUs (Mosaic): one kernel forward, one backward (tpu_norm.py)."""

import jax.numpy as jnp

from pallas_kernels import tpu_norm
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.mlstm_back.rows import check, norm_of, with_kernels


def mlstm_back_pallas_tpu(call: Call, options: Options) -> Inner:
    """The backend "pallas_tpu": bfloat16 and float32.

    Raises NotImplementedError for other types, heads that are no multiple of 128 channels, and
    channels of which VMEM holds fewer than 128 tokens.
    """
    mode = interpret_mode("tpu")
    check(call, jnp.bfloat16, jnp.float32)
    norm = norm_of(call, options)
    settings = tpu_norm.settings_for(norm, call.scale.shape[0], call.h.dtype, mode)
    return _back((tpu_norm, settings), call)


_back = with_kernels("mlstm_back", "pallas_tpu")
