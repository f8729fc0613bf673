"""Hugging Face `xLSTMForCausalLM` (transformers 5.23, the format of NX-AI/xLSTM-7b): the 7b block, `weight_mode="single"`."""

from collections.abc import Mapping
from typing import Any

from xlstm_jax.config import ModelConfig
from xlstm_jax.interop.mapping import SAME, SIDE_BY_SIDE, TRANSPOSED, Entry, Fields, Table, refuse_unless

REQUIRED = {
    "use_bias": False,
    "add_out_norm": True,
    "weight_mode": "single",
    "v_dim_factor": 1.0,
    "ffn_round_up_to_multiple_of": 64,
    "norm_reduction_force_float32": True,
}


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    del config
    block = (
        Entry("norm/scale", ("norm_mlstm.weight",), SAME),
        Entry("query/kernel", ("mlstm_layer.q.weight",), TRANSPOSED),
        Entry("key/kernel", ("mlstm_layer.k.weight",), TRANSPOSED),
        Entry("value/kernel", ("mlstm_layer.v.weight",), TRANSPOSED),
        Entry("output_gate/kernel", ("mlstm_layer.ogate_preact.weight",), TRANSPOSED),
        Entry("input_gate/kernel", ("mlstm_layer.igate_preact.weight",), TRANSPOSED),
        Entry("input_gate/bias", ("mlstm_layer.igate_preact.bias",), SAME),
        Entry("forget_gate/kernel", ("mlstm_layer.fgate_preact.weight",), TRANSPOSED),
        Entry("forget_gate/bias", ("mlstm_layer.fgate_preact.bias",), SAME),
        Entry("head_norm/scale", ("mlstm_layer.multihead_norm.weight",), SAME),
        Entry("out_projection/kernel", ("mlstm_layer.out_proj.weight",), TRANSPOSED),
        Entry("ffn_norm/scale", ("norm_ffn.weight",), SAME),
        Entry("ffn/up_projection/kernel", ("ffn.proj_up_gate.weight", "ffn.proj_up.weight"), SIDE_BY_SIDE),
        Entry("ffn/down_projection/kernel", ("ffn.proj_down.weight",), TRANSPOSED),
    )
    outside = (
        Entry("embedding/embedding", ("backbone.embeddings.weight",), SAME),
        Entry("backbone/final_norm/scale", ("backbone.out_norm.weight",), SAME),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {"mlstm_7b": block}, "backbone.blocks.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json.

    Raises:
        UserError: a field has a value that this project has no counterpart for, or is missing.
    """
    theirs = Fields(theirs)
    refuse_unless(theirs, REQUIRED, "the model")
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        dim=theirs["hidden_size"],
        num_blocks=theirs["num_hidden_layers"],
        num_heads=theirs["num_heads"],
        block="7b",
        qk_factor=float(theirs["qk_dim_factor"]),
        ffn_factor=float(theirs["ffn_proj_factor"]),
        input_gate_bias=-10.0,
        input_gate_bias_std=0.0,
        gate_soft_cap=float(theirs["gate_soft_cap"]),
        logit_soft_cap=float(theirs["output_logit_soft_cap"]),
        norm_eps=float(theirs["norm_eps"]),
        cell_eps=float(theirs["eps"]),
        tie_embeddings=bool(theirs["tie_word_embeddings"]),
    )


def export_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of their config.json that describe the architecture.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    ours = {name: getattr(config, name) for name in ("block", "input_gate", "slstm_positions", "ratio")}
    refuse_unless(ours, {"block": "7b", "input_gate": "exponential", "slstm_positions": (), "ratio": None}, "the model")
    caps = {name: value is not None for name, value in (("gate_soft_cap", config.gate_soft_cap), ("logit_soft_cap", config.logit_soft_cap))}
    refuse_unless(caps, {"gate_soft_cap": True, "logit_soft_cap": True}, "whether the model")
    return {
        "model_type": "xlstm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "embedding_dim": config.dim,
        "num_hidden_layers": config.num_blocks,
        "num_blocks": config.num_blocks,
        "num_heads": config.num_heads,
        "qk_dim_factor": config.qk_factor,
        "ffn_proj_factor": config.ffn_factor,
        "gate_soft_cap": config.gate_soft_cap,
        "output_logit_soft_cap": config.logit_soft_cap,
        "norm_eps": config.norm_eps,
        "eps": config.cell_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **REQUIRED,
    }
