"""Parameters as inference reads them: cast to the compute dtype once, and on a CPU each block's by themselves."""

from typing import Any

import jax

from xlstm_jax.config import ModelConfig
from xlstm_jax.models import LanguageModel
from xlstm_jax.models.backbone import split_blocks
from xlstm_jax.parallel import compute_dtype, on_one_cpu, rows_in_place

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


def for_steps(model: LanguageModel, params: Any) -> tuple[LanguageModel, Any]:
    """The model and its parameters as `decode` is fastest with; they take the same memory, and the same results come out.

    On one CPU device: a model whose blocks stand apart, and views of the stacked parameters. A loop over stacked blocks cuts each kernel
    out of its stack before the product, and XLA's CPU backend makes a copy of it: with one row, where a step does nothing but read
    weights, that is two thirds of the time (docs/generation.md). Elsewhere both as they are: the cut is part of the product there.
    """
    if not on_one_cpu(params):
        return model, params
    backbone = params["backbone"]
    return model.clone(apart=True), {**params, "backbone": {**backbone, **split_blocks(backbone, model.config, rows_in_place)}}
