"""PyPI `xlstm` 2.0.6, `xLSTMLMModel`: the paper's blocks, sLSTM backend "vanilla".

Two things there are easy to get wrong. Norm weights are stored as w with the effective weight 1 +
w. And the sLSTM layer's weights called `fgate` feed the input gate, those called `igate` the forget
gate. (Its recurrent step scales keys where we scale queries: that concerns states, not parameters.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.interop.format import Format
from xlstm_jax.interop.mapping import (
    BLOCKS_TRANSPOSED,
    CONV,
    PLAIN,
    SAME,
    TRANSPOSED,
    Entry,
    Fields,
    Table,
    Transform,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.models.config import ModelConfig, text_of_blocks

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


MLSTM, SLSTM = ("mlstm",), ("slstm", "mlp")


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    has = config.mixers

    def conv(mixer: str) -> tuple[Entry, ...]:
        if mixer not in has or not has[mixer].conv_width:
            return ()
        return (
            Entry(f"{mixer}/conv/kernel", ("xlstm.conv1d.conv.weight",), CONV),
            Entry(f"{mixer}/conv/bias", ("xlstm.conv1d.conv.bias",), SAME),
        )

    cell = "xlstm.mlstm_cell"
    mlstm = (
        Entry("mlstm_norm/scale", ("xlstm_norm.weight",), RESIDUAL_WEIGHT),
        Entry("mlstm/up_projection/kernel", ("xlstm.proj_up.weight",), TRANSPOSED),
        *conv("mlstm"),
        Entry("mlstm/query/kernel", ("xlstm.q_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("mlstm/key/kernel", ("xlstm.k_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("mlstm/value/kernel", ("xlstm.v_proj.weight",), BLOCKS_TRANSPOSED),
        Entry("mlstm/input_gate/kernel", (f"{cell}.igate.weight",), TRANSPOSED),
        Entry("mlstm/input_gate/bias", (f"{cell}.igate.bias",), SAME),
        Entry("mlstm/forget_gate/kernel", (f"{cell}.fgate.weight",), TRANSPOSED),
        Entry("mlstm/forget_gate/bias", (f"{cell}.fgate.bias",), SAME),
        Entry("mlstm/skip", ("xlstm.learnable_skip",), SAME),
        Entry("mlstm/head_norm/scale", (f"{cell}.outnorm.weight",), RESIDUAL_WEIGHT),
        Entry("mlstm/down_projection/kernel", ("xlstm.proj_down.weight",), TRANSPOSED),
    )
    gate_names = tuple(f"xlstm.{gate}gate.weight" for gate in "fizo")
    heads = has["slstm"].num_heads if "slstm" in has else 1
    slstm = (
        Entry("slstm_norm/scale", ("xlstm_norm.weight",), RESIDUAL_WEIGHT),
        *conv("slstm"),
        Entry("slstm/gates/kernel", gate_names, GATES),
        Entry("slstm/recurrent_kernel", ("xlstm.slstm_cell._recurrent_kernel_",), RECURRENT),
        Entry("slstm/bias", ("xlstm.slstm_cell._bias_",), _slstm_bias(heads)),
        Entry("slstm/head_norm/scale", ("xlstm.group_norm.weight",), RESIDUAL_WEIGHT),
        Entry("mlp_norm/scale", ("ffn_norm.weight",), RESIDUAL_WEIGHT),
        Entry("mlp/up_projection/kernel", ("ffn.proj_up.weight",), TRANSPOSED),
        Entry("mlp/down_projection/kernel", ("ffn.proj_down.weight",), TRANSPOSED),
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
    return Table(outside, {MLSTM: mlstm, SLSTM: slstm}, "xlstm_block_stack.blocks.{l}.")


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
    mixers = {}
    if mlstm:
        mixers["mlstm"] = {
            "num_heads": mlstm.whole("num_heads"),
            "conv_width": mlstm.whole("conv1d_kernel_size"),
            "up_factor": mlstm.decimal("proj_factor"),
            "qkv_block_size": mlstm.whole("qkv_proj_blocksize"),
        }
    if slstm:
        mixers["slstm"] = {
            "num_heads": slstm.whole("num_heads"),
            "conv_width": slstm.whole("conv1d_kernel_size"),
        }
        mixers["mlp"] = {"factor": ffn.decimal("proj_factor")}
    blocks = tuple(SLSTM if number in positions else MLSTM for number in range(num_blocks))
    return checked(
        vocab_size=theirs.whole("vocab_size"),
        dim=theirs.whole("embedding_dim"),
        num_blocks=num_blocks,
        blocks=text_of_blocks(blocks),
        tie_embeddings=theirs.yes("tie_weights"),
        dropout=dropout,
        mixers=mixers,
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
    refuse_other_blocks(config, {MLSTM, SLSTM})
    plain = PLAIN | {"residual": True, "final_norm": True, "norm": "layer"}
    refuse_unless(vars(config), plain | {"logit_soft_cap": None, "norm_eps": 1e-5}, "the model")
    positions = [number for number, block in enumerate(config.layout) if block == SLSTM]
    mlstm_block = slstm_block = None
    if len(positions) < config.num_blocks:
        mlstm = config.mlstm
        required = {"input_gate": "exponential", "gate_soft_cap": None, "norm_eps": 1e-5}
        required |= {"input_gate_from": "text", "forget_gate_from": "text"}
        refuse_unless(vars(mlstm), required | {"eps": 1e-6}, "the mLSTM")
        mlstm_block = {
            "mlstm": {
                "num_heads": mlstm.num_heads,
                "conv1d_kernel_size": mlstm.conv_width,
                "proj_factor": mlstm.up_factor,
                "qkv_proj_blocksize": mlstm.qkv_block_size,
            }
        }
    if positions:
        slstm, feed_forward = config.slstm, config.mlp
        refuse_unless(vars(slstm), {"norm_eps": 1e-5, "dense": False}, "the sLSTM")
        required = {
            "activation": "gelu",
            "gated": True,
            "bias": False,
            "hidden": None,
            "round_to": 64,
            "whole_first": False,
        }
        refuse_unless(vars(feed_forward), required, "the feed-forward layer")
        slstm_block = {
            "slstm": {
                "num_heads": slstm.num_heads,
                "conv1d_kernel_size": slstm.conv_width,
                "backend": "vanilla",
            },
            "feedforward": {"proj_factor": feed_forward.factor, "act_fn": "gelu"},
        }
    return {
        "vocab_size": config.vocab_size,
        "embedding_dim": config.dim,
        "num_blocks": config.num_blocks,
        "context_length": context_length,
        "slstm_at": positions,
        "tie_weights": config.tie_embeddings,
        "dropout": config.dropout,
        "mlstm_block": mlstm_block,
        "slstm_block": slstm_block,
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


def _context_length(fields: Mapping[str, Any]) -> int | None:
    length = fields.get("context_length")
    return length if type(length) is int and length > 0 else None


FORMAT = Format(
    about="PyPI xlstm's xLSTMLMModel (docs/generation.md says how to store one)",
    recognises=lambda fields: "slstm_at" in fields,
    import_config=import_config,
    export_fields=lambda config, wish: export_full_config(config, wish.context_length),
    table=table,
    context_length=_context_length,
)
