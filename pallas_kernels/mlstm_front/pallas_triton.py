"""`mlstm_front` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, one backward.
"""

import jax.numpy as jnp

from pallas_kernels.dispatch import device_family, target_device
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_front import pallas_triton_kernels
from pallas_kernels.mlstm_front.call import Call, Front
from pallas_kernels.mlstm_front.pallas_triton_kernels import Blocks, Settings
from pallas_kernels.mlstm_front.rows import Kernels, check, with_kernels

# On Hopper, ms on an H200, 65,536 tokens of 1,536 channels: forward 0.34, backward 0.37; with two
# stages 0.35 and 0.50. The others are the largest that spill at most 24 bytes a thread
# (docs/aot_gpu.md); they have not been timed. Tiles of 64 x 64 spilled 2 KB in bfloat16 on an A100,
# and 4 to 80 KB in float32, whose operands are two TF32 halves each.
BLOCKS = {"hopper": Blocks(64, 64, 4, stages=3), "gpu": Blocks(32, 32, 4, stages=2)}
FLOAT32 = Blocks(32, 16, 4, stages=2)
PROGRAMS = 1056  # about so many in the backward pass, where there are enough tokens


def mlstm_front_pallas_triton(call: Call) -> Front:
    """The backend "pallas_triton": bfloat16, float16 and float32 (three TF32 products for each).

    Raises NotImplementedError for other types, blocks whose size does not divide a group of
    channels (64 on Hopper, 32 elsewhere, 16 of float32), and devices before sm_80.
    """
    mode = triton_mode()
    blocks = blocks_for(device_family(*target_device()), call.u.dtype)
    size = check(call, blocks.channels, jnp.bfloat16, jnp.float16, jnp.float32)
    settings = Settings(mode, size, blocks, PROGRAMS)
    return _front(Kernels(pallas_triton_kernels, settings, blocks.channels), call)


def blocks_for(family: str, dtype: jnp.dtype) -> Blocks:
    """The sizes for a family of devices (dispatch.py) and the type of u."""
    return FLOAT32 if dtype == jnp.float32 else BLOCKS.get(family, BLOCKS["gpu"])


_front = with_kernels("pallas_triton")
