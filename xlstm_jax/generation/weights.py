"""Parameters as inference reads them: what a model casts to its compute dtype at every use is cast once."""

from typing import Any

import jax

from xlstm_jax.config import ModelConfig
from xlstm_jax.parallel import compute_dtype

# Of these the model only ever uses the cast kernel, so that casting it beforehand changes no bit of any result. Gates, and in the paper's
# blocks q, k and v (which are multiplied with the gates' kernels first), stay float32.
CAST = {"up_projection", "down_projection", "out_projection", "output_gate", "lm_head", "embedding"}
CAST_7B = CAST | {"query", "key", "value"}


def cast_weights(params: Any, config: ModelConfig) -> Any:
    """The same model in little more than half the memory where the compute dtype is bfloat16, which is what decoding is bound by."""
    dtype, names = compute_dtype(config.dtype), CAST_7B if config.block == "7b" else CAST

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if dtype.itemsize < leaf.dtype.itemsize and path[-2].key in names else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
