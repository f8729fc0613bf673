"""Hugging Face `LlamaForCausalLM` (transformers 4 and 5): blocks "attention+mlp" with rotary
positions, RMS norms and a gated feed-forward layer.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.mapping import (
    PLAIN,
    SAME,
    SIDE_BY_SIDE,
    TRANSPOSED,
    Entry,
    Fields,
    Table,
    Tensors,
    Transform,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.interop.transformer import (
    BLOCK,
    activation_of,
    feed_forward,
    fields_beside,
    their_activation,
    with_defaults,
)
from xlstm_jax.models.config import ModelConfig

# What a field has where it is absent: the defaults of transformers' `LlamaConfig`.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 2048,
}
THETA = 10000.0
# Of fields that change what is computed and are not read below.
REQUIRED = {
    "pretraining_tp": 1,
    "sliding_window": None,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
}
BIASES_SIDE_BY_SIDE = Transform(
    lambda a, b: np.concatenate([a, b]), lambda x: tuple(np.split(x, 2))
)
# transformers 4.30 and before stored the rotary frequencies, which follow from theta.
NOT_WEIGHTS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    block = [
        Entry("attention_norm/scale", ("input_layernorm.weight",), SAME),
        Entry("mlp_norm/scale", ("post_attention_layernorm.weight",), SAME),
    ]
    projections = {
        "attention/query": ("self_attn.q_proj",),
        "attention/key": ("self_attn.k_proj",),
        "attention/value": ("self_attn.v_proj",),
        "attention/out_projection": ("self_attn.o_proj",),
        "mlp/up_projection": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp/down_projection": ("mlp.down_proj",),
    }
    for ours, theirs in projections.items():
        two = len(theirs) == 2
        names = tuple(f"{name}.weight" for name in theirs)
        block.append(Entry(f"{ours}/kernel", names, SIDE_BY_SIDE if two else TRANSPOSED))
        section = config.mixers.get(ours.partition("/")[0])  # none in a model of other blocks
        if section is not None and section.bias:
            names = tuple(f"{name}.bias" for name in theirs)
            block.append(Entry(f"{ours}/bias", names, BIASES_SIDE_BY_SIDE if two else SAME))
    outside = (
        Entry("embedding/embedding", ("model.embed_tokens.weight",), SAME),
        Entry("backbone/final_norm/scale", ("model.norm.weight",), SAME),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {BLOCK: tuple(block)}, "model.layers.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json; those that are absent have
    transformers' defaults.

    Raises:
        UserError: a field has a value that this project has no counterpart for.
    """
    fields = with_defaults(theirs, DEFAULTS)
    refuse_unless(fields, REQUIRED, "the model")
    dim, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    groups = heads
    if fields.get("num_key_value_heads") is not None:
        groups = fields.whole("num_key_value_heads")
    if fields.get("head_dim") is not None and fields.whole("head_dim") * heads != dim:
        raise UserError(
            f"the checkpoint can't be converted: head_dim is {fields['head_dim']} and "
            f"num_attention_heads {heads}; their product must be hidden_size, which is {dim}"
        )
    return checked(
        vocab_size=fields.whole("vocab_size"),
        dim=dim,
        num_blocks=fields.whole("num_hidden_layers"),
        blocks="+".join(BLOCK),
        norm="rms",
        norm_eps=fields.decimal("rms_norm_eps"),
        tie_embeddings=fields.yes("tie_word_embeddings"),
        mixers={
            "attention": {
                "num_heads": heads,
                "num_groups": None if groups == heads else groups,
                "theta": _theta(fields),
                "bias": fields.yes("attention_bias"),
            },
            "mlp": feed_forward(
                activation_of(fields, "hidden_act"),
                fields.whole("intermediate_size"),
                gated=True,
                bias=fields.yes("mlp_bias"),
            ),
        },
    )


def _theta(fields: Fields) -> float:
    """The base of the rotary positions: transformers 5 writes it into `rope_parameters`, 4 beside
    `rope_scaling`.

    Raises:
        UserError: the positions are scaled, or there are two bases.
    """
    found = {}
    if fields.get("rope_theta") is not None:
        found["rope_theta"] = fields.decimal("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        if fields.get(name) is None:
            continue
        inside = fields.section(name)
        required = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
        refuse_unless(inside, required, name)
        for other in inside.keys() - required.keys() - {"rope_theta"}:
            if inside[other] is not None:
                refuse_unless(inside, {other: None}, name)
        if inside.get("rope_theta") is not None:
            found[f"{name}.rope_theta"] = inside.decimal("rope_theta")
    if len(set(found.values())) > 1:
        both = " and ".join(f"{name} is {value}" for name, value in found.items())
        raise UserError(f"the checkpoint can't be converted: {both}; they must be equal")
    return next(iter(found.values()), THETA)


def export_config(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """The fields of their config.json that describe the architecture; `context_length` is the
    length that the model is made for.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    refuse_other_blocks(config, {BLOCK})
    attention, mlp = config.attention, config.mlp
    refuse_unless(vars(config), PLAIN | {"norm": "rms", "logit_soft_cap": None}, "the model")
    refuse_unless(vars(mlp), {"gated": True}, "the feed-forward layer")
    if attention.theta is None:
        raise UserError(
            "the checkpoint can't be converted: the attention has theta = None; the format has "
            "rotary positions"
        )
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": mlp.hidden_dim(config.dim),
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.groups,
        "head_dim": config.dim // attention.num_heads,
        "hidden_act": their_activation(mlp.activation),
        "max_position_embeddings": context_length,
        "rms_norm_eps": config.norm_eps,
        # transformers 4 reads the first, 5 the second
        "rope_theta": attention.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.theta},
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _export_fields(config: ModelConfig, wish: Wish) -> dict[str, Any]:
    beside = fields_beside("LlamaForCausalLM", wish) | {"pad_token_id": None}
    return beside | export_config(config, wish.context_length)


def _weights(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    return {name: x for name, x in tensors.items() if not NOT_WEIGHTS.fullmatch(name)}


FORMAT = Format(
    about="LlamaForCausalLM of transformers (model_type 'llama')",
    recognises=lambda fields: fields.get("model_type") == "llama",
    import_config=import_config,
    export_fields=_export_fields,
    table=table,
    context_length=lambda fields: with_defaults(fields, DEFAULTS).whole("max_position_embeddings"),
    incoming=_weights,
)
