"""PyPI `xlstm` 2.0.6, `xLSTMLMModel`: the paper's blocks, sLSTM backend "vanilla".

Two things there are easy to get wrong. Norm weights are stored as w with the effective weight 1 +
w. And the sLSTM layer's weights called `fgate` feed the input gate, those called `igate` the forget
gate. (Its recurrent step scales keys where we scale queries: that concerns states, not parameters.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm_jax.config import ModelConfig
from xlstm_jax.errors import UserError
from xlstm_jax.interop.mapping import (
    BLOCKS_TRANSPOSED,
    CONV,
    SAME,
    TRANSPOSED,
    Entry,
    Fields,
    Table,
    Transform,
    checked,
    refuse_unless,
)

RESIDUAL_WEIGHT = Transform(lambda w: 1 + w, lambda scale: (scale - 1,), rounds=True)
GATES = Transform(  # four [H out in] and our [4 H in out]
    lambda *gates: np.stack([np.swapaxes(gate, 1, 2) for gate in gates]),
    lambda kernel: tuple(np.swapaxes(gate, 1, 2) for gate in kernel),
)
RECURRENT = Transform(  # [H 4*out in] and our [4 H in out]
    lambda R: R.reshape(R.shape[0], 4, -1, R.shape[-1]).transpose(1, 0, 3, 2),
    lambda kernel: (kernel.transpose(1, 0, 3, 2).reshape(kernel.shape[1], -1, kernel.shape[2]),),
)


def _slstm_bias(num_heads: int) -> Transform:
    """Gate by gate, flat, and our [4 H V]."""
    return Transform(lambda b: b.reshape(4, num_heads, -1), lambda bias: (bias.reshape(-1),))


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    conv = (
        Entry("conv/kernel", ("xlstm.conv1d.conv.weight",), CONV),
        Entry("conv/bias", ("xlstm.conv1d.conv.bias",), SAME),
    )
    mlstm = (
        Entry("norm/scale", ("xlstm_norm.weight",), RESIDUAL_WEIGHT),
        Entry("up_projection/kernel", ("xlstm.proj_up.weight",), TRANSPOSED),
        *conv,
        Entry("query/kernel", ("xlstm.q_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("key/kernel", ("xlstm.k_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("value/kernel", ("xlstm.v_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("input_gate/kernel", ("xlstm.mlstm_cell.igate.weight",), TRANSPOSED),
        Entry("input_gate/bias", ("xlstm.mlstm_cell.igate.bias",), SAME),
        Entry("forget_gate/kernel", ("xlstm.mlstm_cell.fgate.weight",), TRANSPOSED),
        Entry("forget_gate/bias", ("xlstm.mlstm_cell.fgate.bias",), SAME),
        Entry("skip", ("xlstm.learnable_skip",), SAME),
        Entry("head_norm/scale", ("xlstm.mlstm_cell.outnorm.weight",), RESIDUAL_WEIGHT),
        Entry("down_projection/kernel", ("xlstm.proj_down.weight",), TRANSPOSED),
    )
    gate_names = (
        "xlstm.fgate.weight",
        "xlstm.igate.weight",
        "xlstm.zgate.weight",
        "xlstm.ogate.weight",
    )
    slstm = (
        Entry("norm/scale", ("xlstm_norm.weight",), RESIDUAL_WEIGHT),
        *conv,
        Entry("gates/kernel", gate_names, GATES),
        Entry("recurrent_kernel", ("xlstm.slstm_cell._recurrent_kernel_",), RECURRENT),
        Entry("bias", ("xlstm.slstm_cell._bias_",), _slstm_bias(config.num_heads)),
        Entry("head_norm/scale", ("xlstm.group_norm.weight",), RESIDUAL_WEIGHT),
        Entry("ffn_norm/scale", ("ffn_norm.weight",), RESIDUAL_WEIGHT),
        Entry("ffn/up_projection/kernel", ("ffn.proj_up.weight",), TRANSPOSED),
        Entry("ffn/down_projection/kernel", ("ffn.proj_down.weight",), TRANSPOSED),
    )
    outside = (
        Entry("embedding/embedding", ("token_embedding.weight",), SAME),
        Entry(
            "backbone/final_norm/scale",
            ("xlstm_block_stack.post_blocks_norm.weight",),
            RESIDUAL_WEIGHT,
        ),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {"mlstm": mlstm, "slstm": slstm}, "xlstm_block_stack.blocks.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from `dataclasses.asdict` of an `xLSTMLMModelConfig`.

    Raises:
        UserError: a field has a value that this project has no counterpart for, or is missing.
    """
    theirs = Fields(theirs)
    required = {"bias": False, "add_post_blocks_norm": True, "add_embedding_dropout": False}
    refuse_unless(theirs, required, "the model")
    num_blocks, dropout = theirs.whole("num_blocks"), theirs.decimal("dropout")
    positions = _positions(theirs, num_blocks)
    mlstm, slstm, ffn = Fields(), Fields(), Fields()
    if len(positions) < num_blocks:
        mlstm = theirs.section("mlstm_block").section("mlstm")
        refuse_unless(
            mlstm,
            {"bias": False, "round_proj_up_to_multiple_of": 64, "round_proj_up_dim_up": True},
            "the mLSTM block",
        )
    if positions:
        slstm = theirs.section("slstm_block").section("slstm")
        ffn = theirs.section("slstm_block").section("feedforward")
        refuse_unless(
            slstm,
            {"function": "slstm", "group_norm_weight": True, "dropout": theirs["dropout"]},
            "the sLSTM block",
        )
        required = {
            "bias": False,
            "act_fn": "gelu",
            "ff_type": "ffn_gated",
            "round_proj_up_to_multiple_of": 64,
        }
        refuse_unless(ffn, required, "the feed-forward layer")
    both = [cell for cell in (mlstm, slstm) if cell]
    for field in ("num_heads", "conv1d_kernel_size"):
        if len({cell.whole(field) for cell in both}) > 1:
            raise UserError(
                f"the checkpoint can't be converted: mLSTM and sLSTM blocks differ in {field}; "
                f"only one value is supported"
            )
    factors = {}
    if mlstm:
        factors |= {
            "up_factor": mlstm.decimal("proj_factor"),
            "qkv_block_size": mlstm.whole("qkv_proj_blocksize"),
        }
    if ffn:
        factors["ffn_factor"] = ffn.decimal("proj_factor")
    return checked(
        ModelConfig(
            vocab_size=theirs.whole("vocab_size"),
            dim=theirs.whole("embedding_dim"),
            num_blocks=num_blocks,
            num_heads=both[0].whole("num_heads") if both else ModelConfig.num_heads,
            slstm_positions=positions,
            conv_width=both[0].whole("conv1d_kernel_size") if both else ModelConfig.conv_width,
            tie_embeddings=theirs.yes("tie_weights"),
            dropout=dropout,
            **factors,
        )
    )


def _positions(theirs: Fields, num_blocks: int) -> tuple[int, ...]:
    """Where the sLSTM blocks stand."""
    positions = theirs["slstm_at"]
    if positions == "all":
        return tuple(range(num_blocks))
    if not isinstance(positions, list | tuple) or any(type(at) is not int for at in positions):
        raise UserError(
            f"the checkpoint can't be converted: slstm_at of its configuration is {positions!r}; "
            f"it must be a list of whole numbers, or 'all'"
        )
    return tuple(sorted(positions))


def export_config(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """The fields of an `xLSTMLMModelConfig`, nested as `import_config` reads them; `context_length`
    bounds their parallel form.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    ours = {
        name: getattr(config, name)
        for name in ("block", "input_gate", "gate_soft_cap", "logit_soft_cap", "norm_eps")
    }
    required = {
        "block": "paper",
        "input_gate": "exponential",
        "gate_soft_cap": None,
        "logit_soft_cap": None,
        "norm_eps": 1e-5,
    }
    refuse_unless(ours, required, "the model")
    positions = [k for k, kind in enumerate(config.block_kinds) if kind == "slstm"]
    mlstm = {
        "num_heads": config.num_heads,
        "conv1d_kernel_size": config.conv_width,
        "proj_factor": config.up_factor,
        "qkv_proj_blocksize": config.qkv_block_size,
    }
    slstm = {
        "num_heads": config.num_heads,
        "conv1d_kernel_size": config.conv_width,
        "backend": "vanilla",
    }
    return {
        "vocab_size": config.vocab_size,
        "embedding_dim": config.dim,
        "num_blocks": config.num_blocks,
        "context_length": context_length,
        "slstm_at": positions,
        "tie_weights": config.tie_embeddings,
        "dropout": config.dropout,
        "mlstm_block": {"mlstm": mlstm} if len(positions) < config.num_blocks else None,
        "slstm_block": {
            "slstm": slstm,
            "feedforward": {"proj_factor": config.ffn_factor, "act_fn": "gelu"},
        }
        if positions
        else None,
    }


def export_full_config(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """The same with the fields that are always so: the config.json of an exported folder, which
    `import_config` reads back.
    """
    fields = export_config(config, context_length)
    fields |= {"bias": False, "add_post_blocks_norm": True, "add_embedding_dropout": False}
    always = {"dropout": config.dropout, "bias": False}
    if fields["mlstm_block"]:
        fields["mlstm_block"]["mlstm"] |= {
            **always,
            "round_proj_up_to_multiple_of": 64,
            "round_proj_up_dim_up": True,
        }
    if fields["slstm_block"]:
        fields["slstm_block"]["slstm"] |= {
            "function": "slstm",
            "group_norm_weight": True,
            "dropout": config.dropout,
        }
        fields["slstm_block"]["feedforward"] |= {
            **always,
            "ff_type": "ffn_gated",
            "round_proj_up_to_multiple_of": 64,
        }
    return fields
