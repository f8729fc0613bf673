"""The PyTorch originals with random values in every parameter, and this project's models from the
same tensors: what cpu_vs_pytorch.py times, and what tests/parity compares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from xlstm_jax.interop import large, mapping, paper
from xlstm_jax.models import build_model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Noise on every parameter, so that no norm weight, bias or recurrent kernel stays at 0 or 1.

    Matrices get 0.5 / sqrt(fan-in): larger ones make a model that amplifies float32's rounding from
    block to block.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            std = 0.2 if parameter.ndim == 1 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


def tensors_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def paper_model(seed: int, **fields):
    """An `xLSTMLMModel` in evaluation mode; fields as `paper.export_config` names them."""
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    mlstm, slstm = fields.pop("mlstm_block"), fields.pop("slstm_block")
    torch.manual_seed(seed)
    model = xLSTMLMModel(
        xLSTMLMModelConfig(
            **fields,
            mlstm_block=mlstm and mLSTMBlockConfig(mlstm=mLSTMLayerConfig(**mlstm["mlstm"])),
            slstm_block=slstm
            and sLSTMBlockConfig(
                slstm=sLSTMLayerConfig(**slstm["slstm"]),
                feedforward=FeedForwardConfig(**slstm["feedforward"]),
            ),
        )
    )
    model.reset_parameters()
    randomize(model, seed)
    return model.eval()


def large_model(seed: int, fields: dict):
    """A transformers `xLSTMForCausalLM` in evaluation mode; fields as `large.export_config` gives
    them.
    """
    from transformers import xLSTMConfig, xLSTMForCausalLM

    torch.manual_seed(seed)
    own = {name: value for name, value in fields.items() if name != "model_type"}
    model = xLSTMForCausalLM(xLSTMConfig(**own, autocast_kernel_dtype="float32", chunk_size=64))
    randomize(model, seed)
    return model.eval()


def ours(kind, config, tensors):
    """(model, variables) of this project from the originals' tensors."""
    model = build_model(config)
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    )["params"]
    params = mapping.import_params(kind.table(config), config, tensors, shapes)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    return model, {"params": params}


def round_trip(kind, config, tensors, variables) -> None:
    """Exporting gives the originals' tensors back."""
    exported = mapping.export_params(kind.table(config), config, variables["params"])
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        # 1 + w - 1 rounds
        np.testing.assert_allclose(exported[name], tensor, rtol=0, atol=1e-6, err_msg=name)


__all__ = ["large", "large_model", "ours", "paper", "paper_model", "round_trip", "tensors_of"]
