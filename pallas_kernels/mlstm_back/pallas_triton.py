"""`mlstm_back` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, one backward (triton_norm.py).
"""

import jax.numpy as jnp

from pallas_kernels import triton_norm
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.mlstm_back.rows import check, norm_of, with_kernels


def mlstm_back_pallas_triton(call: Call, options: Options) -> Inner:
    """The backend "pallas_triton": bfloat16, float16 and float32.

    Raises NotImplementedError for other types, one token, heads that are no sum of few powers of
    two of one size, and devices before sm_80.
    """
    mode, h = triton_mode(), call.h
    check(call, jnp.bfloat16, jnp.float16, jnp.float32)
    if h.shape[0] * h.shape[1] == 1:
        raise NotImplementedError("it is for several tokens; of one, XLA makes as few kernels")
    norm = norm_of(call, options)
    return _back((triton_norm, triton_norm.settings_for("mlstm_back", mode, "a head", norm)), call)


_back = with_kernels("mlstm_back", "pallas_triton")
