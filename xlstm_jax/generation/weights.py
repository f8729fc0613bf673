"""Parameters as inference reads them: cast to the compute dtype once, and each block's by
themselves.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.config import ModelConfig
from xlstm_jax.models import LanguageModel
from xlstm_jax.models.backbone import split_blocks
from xlstm_jax.parallel import compute_dtype, has_room, only_device, rows_in_place

# The model casts these kernels to the compute dtype before it uses them, so that casting them once
# beforehand changes no bit of any result. The gates' kernels stay float32, and so do q, k and v of
# the paper's blocks, which are multiplied with the gates' kernels first.
CAST = {"up_projection", "down_projection", "out_projection", "output_gate", "lm_head", "embedding"}
CAST_7B = CAST | {"query", "key", "value"}


def cast_weights(params: Any, config: ModelConfig) -> Any:
    """The same model in little more than half the memory where the compute dtype is bfloat16, which
    is what decoding is bound by.
    """
    dtype, names = compute_dtype(config.dtype), CAST_7B if config.block == "7b" else CAST

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return (
            leaf.astype(dtype)
            if dtype.itemsize < leaf.dtype.itemsize and path[-2].key in names
            else leaf
        )

    return jax.tree_util.tree_map_with_path(cast, params)


SAMPLED = 64  # so many values of each parameter array are read for the fingerprint


def fingerprint(params: Any) -> str:
    """A name for the values of a checkpoint's parameters, the same before and after
    `cast_weights`.

    It reads 64 values of every array, spread over it, so that it costs nothing for billions of
    parameters. One training step changes nearly all values of an array, and so the fingerprint.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    content = hashlib.sha256()
    for (path, leaf), values in zip(leaves, _sampled(params), strict=True):
        content.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        content.update(np.asarray(values, np.float32).tobytes())
    return content.hexdigest()


@jax.jit
def _sampled(params: Any) -> list[jax.Array]:
    def values(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        places = np.linspace(0, leaf.size - 1, min(SAMPLED, leaf.size)).astype(np.int64)
        sampled = leaf[np.unravel_index(places, leaf.shape)].astype(jnp.float32)
        # `cast_weights` may have rounded these already
        return sampled.astype(jnp.bfloat16) if path[-2].key in CAST_7B else sampled

    return [values(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def for_steps(model: LanguageModel, params: Any) -> tuple[LanguageModel, Any]:
    """The model and its parameters as `decode` is fastest with: where it helps, blocks that stand
    apart; the same results come out.

    A loop over stacked blocks cuts each kernel out of its stack before the product. XLA copies it
    there on CPUs and GPUs, so that a step, which does little but read weights, moves three times
    their bytes; it also moves the states from one stack to another. On a CPU the blocks' parameters
    are views of the stacked ones; on a GPU they are copies, made where they take at most half of
    the free memory. On TPUs the cut is part of the product, and over several devices parameters
    stay where they are placed (docs/generation.md).
    """
    device, size = (
        only_device(params),
        sum(leaf.nbytes for leaf in jax.tree.leaves(params["backbone"])),
    )
    if device is not None and device.platform == "cpu":
        rows = rows_in_place
    elif device is not None and device.platform == "gpu" and has_room(device, size):
        rows = list
    else:
        return model, params
    backbone = params["backbone"]
    return model.clone(apart=True), {
        **params,
        "backbone": {**backbone, **split_blocks(backbone, model.config, rows)},
    }
