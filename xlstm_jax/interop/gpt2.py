"""Hugging Face `GPT2LMHeadModel`: blocks "attention+mlp" with learned positions, layer norms with
biases and a feed-forward layer that is not gated.

Its projections are stored [in out], as ours are, and those of queries, keys and values as one
tensor.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from xlstm_jax.errors import UserError
from xlstm_jax.interop import fused
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.mapping import (
    PLAIN,
    SAME,
    TRANSPOSED,
    Entry,
    Table,
    Tensors,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.interop.tensor_files import Tensor
from xlstm_jax.interop.transformer import (
    BLOCK,
    activation_of,
    feed_forward,
    fields_beside,
    their_activation,
    with_defaults,
)
from xlstm_jax.models.config import ModelConfig

# What a field has where it is absent: the defaults of transformers' `GPT2Config`.
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
# Of fields that change what is computed and are not read below.
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
NORM = {"norm": "layer", "norm_bias": True, "positions": "learned", "logit_soft_cap": None}

PREFIX = "transformer."
HEAD = "lm_head.weight"
# The causal mask and its value, which older versions stored.
NOT_WEIGHTS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
PARTS = ("query", "key", "value")
FUSED = {
    f"attn.c_attn.{kind}": tuple(f"attn.c_attn.{part}.{kind}" for part in PARTS)
    for kind in ("weight", "bias")
}


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters; queries, keys and values stand apart
    (`_apart`).
    """
    del config  # all models have the same
    block = [
        Entry("attention_norm/scale", ("ln_1.weight",), SAME),
        Entry("attention_norm/bias", ("ln_1.bias",), SAME),
        Entry("mlp_norm/scale", ("ln_2.weight",), SAME),
        Entry("mlp_norm/bias", ("ln_2.bias",), SAME),
    ]
    projections = {f"attention/{part}": f"attn.c_attn.{part}" for part in PARTS} | {
        "attention/out_projection": "attn.c_proj",
        "mlp/up_projection": "mlp.c_fc",
        "mlp/down_projection": "mlp.c_proj",
    }
    for ours, theirs in projections.items():
        block.append(Entry(f"{ours}/kernel", (f"{theirs}.weight",), SAME))
        block.append(Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME))
    outside = (
        Entry("embedding/embedding", ("transformer.wte.weight",), SAME),
        Entry("position_embedding/embedding", ("transformer.wpe.weight",), SAME),
        Entry("backbone/final_norm/scale", ("transformer.ln_f.weight",), SAME),
        Entry("backbone/final_norm/bias", ("transformer.ln_f.bias",), SAME),
        Entry("lm_head/kernel", (HEAD,), TRANSPOSED),
    )
    return Table(outside, {BLOCK: tuple(block)}, "transformer.h.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json; those that are absent have
    transformers' defaults.

    Of their rates of dropout we have the one on the branches (`resid_pdrop`); those on the
    embedding and on the weights of attention, which count in training alone, we lack.

    Raises:
        UserError: a field has a value that this project has no counterpart for.
    """
    fields = with_defaults(theirs, DEFAULTS)
    refuse_unless(fields, REQUIRED, "the model")
    dim = fields.whole("n_embd")
    hidden = 4 * dim if fields.get("n_inner") is None else fields.whole("n_inner")
    return checked(
        vocab_size=fields.whole("vocab_size"),
        dim=dim,
        num_blocks=fields.whole("n_layer"),
        blocks="+".join(BLOCK),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.decimal("layer_norm_epsilon"),
        positions="learned",
        max_positions=fields.whole("n_positions"),
        dropout=fields.decimal("resid_pdrop"),
        tie_embeddings=fields.yes("tie_word_embeddings"),
        mixers={
            "attention": {"num_heads": fields.whole("n_head"), "theta": None, "bias": True},
            "mlp": feed_forward(
                activation_of(fields, "activation_function"), hidden, gated=False, bias=True
            ),
        },
    )


def export_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of their config.json that describe the architecture.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    refuse_other_blocks(config, {BLOCK})
    attention, mlp = config.attention, config.mlp
    refuse_unless(vars(config), PLAIN | NORM, "the model")
    refuse_unless(vars(attention), {"theta": None, "bias": True}, "the attention")
    refuse_unless(vars(mlp), {"gated": False, "bias": True}, "the feed-forward layer")
    if attention.groups != attention.num_heads:
        raise UserError(
            f"the checkpoint can't be converted: the attention has num_groups = {attention.groups};"
            f" the format has as many as heads, {attention.num_heads}"
        )
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.dim,
        "n_layer": config.num_blocks,
        "n_head": attention.num_heads,
        "n_inner": mlp.hidden_dim(config.dim),
        "activation_function": their_activation(mlp.activation),
        "resid_pdrop": config.dropout,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": config.norm_eps,
        **REQUIRED,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _apart(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """Their tensors under the names of `table`: also of a `GPT2Model`, whose names lack the prefix
    (the published gpt2 is stored so).
    """
    tensors = {
        name if name == HEAD or name.startswith(PREFIX) else PREFIX + name: tensor
        for name, tensor in tensors.items()
        if not NOT_WEIGHTS.fullmatch(name)
    }
    groups = {}
    for number in range(config.num_blocks):
        prefix = table(config).block_prefix.format(l=number)
        for whole, parts in FUSED.items():
            groups[prefix + whole] = [(prefix + part, config.dim) for part in parts]
    return fused.split(tensors, groups, axis=-1)


def _together(tensors: Iterable[Tensor], wish: Wish) -> Iterable[Tensor]:
    return fused.join(tensors, FUSED, axis=-1)


FORMAT = Format(
    about="GPT2LMHeadModel of transformers (model_type 'gpt2')",
    recognises=lambda fields: fields.get("model_type") == "gpt2",
    import_config=import_config,
    export_fields=lambda config, wish: (
        fields_beside("GPT2LMHeadModel", wish) | export_config(config)
    ),
    table=table,
    context_length=lambda fields: with_defaults(fields, DEFAULTS).whole("n_positions"),
    incoming=_apart,
    outgoing=_together,
)
