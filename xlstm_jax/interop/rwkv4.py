"""Hugging Face `RwkvForCausalLM` (RWKV/rwkv-4-169m-pile): blocks "rwkv4+rwkv4_channel" with layer
norms that have biases, one of them after the embedding.

Theirs halves activations and weights every `rescale_every` layers when it evaluates, against
overflow in float16; the norms make the logits the same, but for their epsilon. Nothing is halved
here, and 0 is written.
"""

from collections.abc import Mapping
from typing import Any

from xlstm_jax.errors import UserError
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.mapping import (
    PLAIN,
    SAME,
    TRANSPOSED,
    Entry,
    Table,
    Transform,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.interop.transformer import fields_beside, with_defaults
from xlstm_jax.models.config import ModelConfig

BLOCK = ("rwkv4", "rwkv4_channel")
# What a field has where it is absent: the defaults of transformers' `RwkvConfig`.
DEFAULTS = {
    "vocab_size": 50277,
    "context_length": 1024,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
NORM = {"norm": "layer", "norm_bias": True, "embedding_norm": True, "logit_soft_cap": None}
SHARE = Transform(lambda x: x[0, 0], lambda x: (x[None, None],))  # [1 1 D] and our [D]


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    del config  # all models have the same
    block = [
        Entry("rwkv4/decay", ("attention.time_decay",), SAME),
        Entry("rwkv4/bonus", ("attention.time_first",), SAME),
    ]
    parts = {
        ("rwkv4", "attention"): ("key", "value", "receptance"),
        ("rwkv4_channel", "feed_forward"): ("key", "receptance"),
    }
    for (ours, theirs), names in parts.items():
        for name in names:
            block.append(Entry(f"{ours}/mix/{name}", (f"{theirs}.time_mix_{name}",), SHARE))
        for name in ("key", "value", "receptance"):
            block.append(Entry(f"{ours}/{name}/kernel", (f"{theirs}.{name}.weight",), TRANSPOSED))
    block.append(Entry("rwkv4/out_projection/kernel", ("attention.output.weight",), TRANSPOSED))
    outside = [
        Entry("embedding/embedding", ("rwkv.embeddings.weight",), SAME),
        Entry("lm_head/kernel", ("head.weight",), TRANSPOSED),
    ]
    for kind, theirs in (("scale", "weight"), ("bias", "bias")):
        block.append(Entry(f"rwkv4_norm/{kind}", (f"ln1.{theirs}",), SAME))
        block.append(Entry(f"rwkv4_channel_norm/{kind}", (f"ln2.{theirs}",), SAME))
        first = f"rwkv.blocks.0.pre_ln.{theirs}"
        outside.append(Entry(f"embedding_norm/{kind}", (first,), SAME))
        outside.append(Entry(f"backbone/final_norm/{kind}", (f"rwkv.ln_out.{theirs}",), SAME))
    return Table(tuple(outside), {BLOCK: tuple(block)}, "rwkv.blocks.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json; those that are absent have
    transformers' defaults.

    Raises:
        UserError: a field has a value that this project has no counterpart for.
    """
    fields = with_defaults(theirs, DEFAULTS)
    dim = fields.whole("hidden_size")
    if fields.get("attention_hidden_size") is not None:
        inner = fields.whole("attention_hidden_size")
        if inner != dim:
            raise UserError(
                f"the checkpoint can't be converted: attention_hidden_size is {inner}; it must be "
                f"hidden_size, which is {dim}"
            )
    hidden = 4 * dim
    if fields.get("intermediate_size") is not None:
        hidden = fields.whole("intermediate_size")
    return checked(
        vocab_size=fields.whole("vocab_size"),
        dim=dim,
        num_blocks=fields.whole("num_hidden_layers"),
        blocks="+".join(BLOCK),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.decimal("layer_norm_epsilon"),
        embedding_norm=True,
        tie_embeddings=fields.yes("tie_word_embeddings"),
        mixers={"rwkv4_channel": {"factor": hidden / max(dim, 1)}},
    )


def export_config(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """The fields of their config.json that describe the architecture; `context_length` is the
    length that the model is made for.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    refuse_other_blocks(config, {BLOCK})
    refuse_unless(vars(config), PLAIN | NORM, "the model")
    return {
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "context_length": context_length,
        "hidden_size": config.dim,
        "attention_hidden_size": config.dim,
        "intermediate_size": config.rwkv4_channel.hidden_dim(config.dim),
        "num_hidden_layers": config.num_blocks,
        "layer_norm_epsilon": config.norm_eps,
        "rescale_every": 0,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _export_fields(config: ModelConfig, wish: Wish) -> dict[str, Any]:
    return fields_beside("RwkvForCausalLM", wish) | export_config(config, wish.context_length)


FORMAT = Format(
    about="RwkvForCausalLM of transformers (model_type 'rwkv')",
    recognises=lambda fields: fields.get("model_type") == "rwkv",
    import_config=import_config,
    export_fields=_export_fields,
    table=table,
    context_length=lambda fields: with_defaults(fields, DEFAULTS).whole("context_length"),
)
